"""Runs every form of the CUDA kernels once on small random inputs, for compute-sanitizer: scripts/sanitize.sh.

usage: python scripts/every_kernel.py [PATTERN]    only those whose name contains it
Without a GPU the ops' references run: it shows that the calls are right, nothing else.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GENERATOR = torch.Generator().manual_seed(0)


def halves(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=GENERATOR) * scale).half().to(DEVICE)


def floats(*shape: int, scale: float = 0.1) -> Tensor:
    return (torch.randn(shape, generator=GENERATOR) * scale).to(DEVICE)


def weight(*shape: int) -> Tensor:
    """Rows whose products have about the size of what they multiply."""
    return halves(*shape, scale=math.prod(shape[1:]) ** -0.5)


def conv_weight(op: str, outputs: int, channels: int, taps: tuple[int, ...], winograd: bool) -> Tensor:
    """``weight`` of a convolution; ``winograd``: as products that neighbouring rows share."""
    plain = weight(outputs, *taps, channels)
    return ops.pack_winograd_weight(plain.float(), ops.packs_together(op, outputs)).half() if winograd else plain


def stats(batch: int, channels: int, parts: int | None) -> Tensor:
    """Means and variances of ``parts`` of the pixels, or as InstanceNorm has them of all."""
    shape = (batch, channels, 2) if parts is None else (batch, parts, channels, 2)
    return torch.rand(shape, generator=GENERATOR).to(DEVICE)


def conv(x: tuple[int, ...], outputs: int, taps: tuple[int, ...], winograd: bool = False) -> Tensor:
    return ops.conv_act(halves(*x), conv_weight("conv_act", outputs, x[-1], taps, winograd), floats(outputs), 0.2)


def conv_with_stats(x: tuple[int, ...], outputs: int, parts: int | None = None, winograd: bool = False) -> Tensor:
    """3x3, with a residual and statistics."""
    kept, residual = stats(x[0], outputs, parts), halves(*x[:-1], outputs)
    packed = conv_weight("conv_act", outputs, x[-1], (3, 3), winograd)
    return ops.conv_act(halves(*x), packed, floats(outputs), 0.2, residual, stats=kept)


def spade(
    actv: tuple[int, ...],
    channels: int,
    side: int,
    beta: bool = True,
    classes: bool = False,
    parts: int | None = None,
    winograd: bool = False,
) -> Tensor:
    """spade_conv on x of ``side`` pixels squared."""
    rows = 2 * channels if beta else channels
    packed = conv_weight("spade_conv", rows * (16 if classes else 1), actv[-1], (3, 3), winograd)
    return ops.spade_conv(
        halves(*actv), packed, floats(rows), halves(1, side, side, channels), stats(1, channels, parts), 0.2
    )


def weights(op: str, outputs: int, channels: int, hidden: int, winograd: bool) -> tuple[Tensor, Tensor]:
    """Those of a convolution and of the SPADE behind it."""
    first = conv_weight(op, outputs, channels, (3, 3), winograd)
    return first, conv_weight("spade_conv", 2 * outputs, hidden, (3, 3), winograd)


def conv_and_spade(x: tuple[int, ...], outputs: int, hidden: int, kept: bool, winograd: bool = True) -> Tensor:
    """conv_spade; ``kept``: with a residual, and y written out, which is added to the answer."""
    actv, plane = halves(*x[:-1], hidden), (*x[:-1], outputs)
    own, of_spade = weights("conv_spade", outputs, x[-1], hidden, winograd)
    first, second = (halves(*x), own, floats(outputs)), (of_spade, floats(2 * outputs))
    y = torch.empty(plane, dtype=actv.dtype, device=DEVICE) if kept else None
    out = ops.conv_spade(*first, actv, *second, 0.2, halves(*plane) if kept else None, y)
    return out if y is None else out + y


def blocks(x: tuple[int, ...], hidden: int, steps: int, winograd: bool = True) -> Tensor:
    """spade_blocks; both answers, added up."""
    channels = x[-1]
    stacked = [torch.stack([rows] * steps) for rows in weights("spade_blocks", channels, channels, hidden, winograd)]
    actv = halves(*x[:-1], steps * hidden)
    first = halves(*x), halves(*x), actv, stacked[0], floats(steps, channels)
    y, out = ops.spade_blocks(*first, stacked[1], floats(steps, 2 * channels))
    return y + out


def shortcut(actv: tuple[int, ...], side: int, classes: bool = False, parts: int | None = None) -> Tensor:
    """spade_shortcut on x of ``side`` pixels squared."""
    packed = weight(320 * (16 if classes else 1), 3, 3, actv[-1])
    x = halves(actv[0], side, side, 256)
    return ops.spade_shortcut(halves(*actv), packed, floats(320), weight(64, 256), x, stats(actv[0], 256, parts))


def up(x: tuple[int, ...], outputs: int, scale: int, classes: bool = False) -> Tensor:
    products = weight(3, 3, outputs, *((3,) if len(x) == 5 else ()), x[-1])
    return ops.upsample_conv(halves(*x), products, floats(outputs), 0.0, classes=classes, scale=scale)


def pool(x: tuple[int, ...], outputs: int, winograd: bool = False) -> Tensor:
    return ops.conv_pool(halves(*x), conv_weight("conv_pool", outputs, x[-1], (3, 3, 3), winograd), floats(outputs))


def block(side: tuple[int, int], channels: int) -> Tensor:
    """Both kernels of a ConvNeXt block."""
    x, wide = halves(1, *side, channels), 4 * channels
    h, squares = ops.depthwise_linear(x, floats(7, 7, channels), floats(channels), weight(wide, channels), floats(wide))
    return ops.grn_linear(h, squares, floats(wide), weight(channels, wide), floats(channels), x)


def stage(side: tuple[int, int], channels: int, blocks: int = 2, images: int = 1, step: bool = False) -> Tensor:
    """ConvNeXt blocks in one kernel, perhaps with the step before; of more than three images in three each."""
    height, width = side
    before = (2 * height + 1, 2 * width, channels // 2) if step else (height, width, channels)
    x, wide = halves(images, *before), 4 * channels
    first = floats(blocks, 7, 7, channels), floats(blocks, channels), weight(blocks, wide, channels)
    second = floats(blocks, wide), weight(blocks, channels, wide), floats(blocks, channels)
    own = (weight(channels, 2, 2, channels // 2), floats(channels)) if step else ()
    return ops.convnext_stage(x, *first, floats(blocks, wide), *second, *own)


def keypoints(batch: int = 1) -> Tensor:
    return floats(batch, 21, 3, scale=0.5)


def motion() -> Tensor:
    compressed = halves(1, 3, 13, 40, 4)
    out = compressed.new_empty(1, 3, 13, 40, 112)
    return ops.sparse_motion(compressed, ops.background_sample(compressed), keypoints(), keypoints(), out)


def warp() -> Tensor:
    volume = halves(1, 3, 9, 21, 32).permute(0, 4, 1, 2, 3)
    logits = floats(1, 3, 9, 21, 22, scale=3).permute(0, 4, 1, 2, 3)
    return ops.flow_warp(logits, keypoints(), keypoints(), volume)[0]


def driven() -> Tensor:
    """keypoint_transform of heads."""
    heads, source = floats(2, 3 * 66 + 6 * 21 + 4), floats(2, 3 * 21 + 13)
    return ops.keypoint_transform(heads, keypoints(2), keypoints(2), source, relative=False)[0]


def stitching() -> Tensor:
    sizes = (126, 128, 128, 64, 65)
    layers = [(floats(b, a), floats(b)) for a, b in itertools.pairwise(sizes)]
    packed, widths = ops.pack_mlp(layers)
    return ops.stitch_mlp(keypoints(), keypoints(), packed, widths)


def occlusion(x: tuple[int, ...]) -> Tensor:
    return ops.occlusion_head(halves(*x), weight(56, x[1], x[4]), floats(1))


def stem(planes: bool = False) -> Tensor:
    """patch_norm of pictures of bytes, or of floats in planes."""
    picture = torch.rand(2, 3, 21, 28, generator=GENERATOR).to(DEVICE)
    x = picture if planes else (255 * picture).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    return ops.patch_norm(x.permute(0, 2, 3, 1), weight(40, 4, 4, 3), floats(40), floats(40), floats(40))


CASES: dict[str, Callable[[], Tensor]] = {
    "conv_act 128x128 halo, statistics in parts": lambda: conv_with_stats((1, 64, 64, 64), 512, parts=32),
    "conv_act 128x256, statistics": lambda: conv_with_stats((1, 64, 128, 64), 512),
    "conv_act 256x64 halo, statistics": lambda: conv_with_stats((1, 256, 256, 64), 64),
    "conv_act 256x64": lambda: conv((1, 256, 256, 64), 64, (1, 1)),
    "conv_act 256x144": lambda: conv((1, 2, 64, 64, 144), 144, (3, 3, 3)),
    "conv_act 128x128, a cluster's sum": lambda: conv((1, 16, 16, 512), 128, (3, 3)),
    "conv_act 128x128, odd sizes": lambda: conv_with_stats((2, 13, 7, 72), 96),
    "conv_act Winograd, statistics in parts": lambda: conv_with_stats((1, 64, 64, 64), 128, parts=16, winograd=True),
    "conv_act Winograd, 64 outputs": lambda: conv_with_stats((2, 21, 70, 128), 64, winograd=True),
    "conv_act Winograd, the hourglass's last": lambda: conv((1, 2, 9, 64, 144), 144, (3, 3, 3), winograd=True),
    "spade_conv 128x256, statistics in parts": lambda: spade((1, 64, 64, 64), 128, 64, parts=32),
    "spade_conv 128x256 halo": lambda: spade((1, 128, 128, 64), 256, 64),
    "spade_conv 128x256 halo, gamma alone": lambda: spade((1, 128, 128, 64), 512, 64, beta=False),
    "spade_conv 128x256, classes": lambda: spade((1, 24, 24, 64), 128, 16, classes=True),
    "spade_conv 256x128, classes": lambda: spade((1, 24, 24, 64), 64, 32, classes=True),
    "spade_conv 128x256, classes, gamma alone": lambda: spade((1, 24, 24, 64), 256, 16, beta=False, classes=True),
    "spade_conv Winograd": lambda: spade((1, 32, 32, 128), 64, 16, winograd=True),
    "spade_conv Winograd, statistics in parts": lambda: spade((1, 18, 18, 64), 64, 18, parts=2, winograd=True),
    "conv_spade Winograd": lambda: conv_and_spade((1, 64, 64, 64), 512, 64, kept=False),
    "conv_spade Winograd, two images, y kept": lambda: conv_and_spade((2, 32, 64, 192), 512, 64, kept=True),
    "conv_spade Winograd in two kernels": lambda: conv_and_spade((2, 9, 13, 64), 192, 64, kept=True),
    "conv_spade in two kernels": lambda: conv_and_spade((2, 9, 13, 64), 96, 64, kept=True, winograd=False),
    "spade_blocks Winograd in one kernel": lambda: blocks((1, 64, 64, 512), 64, 3),
    "spade_blocks Winograd in one kernel, two images": lambda: blocks((2, 64, 64, 256), 64, 4),
    "spade_blocks Winograd step by step": lambda: blocks((2, 9, 13, 64), 64, 3),
    "spade_blocks step by step": lambda: blocks((2, 9, 13, 96), 64, 3, winograd=False),
    "spade_shortcut": lambda: shortcut((3, 20, 20, 64), 10),
    "spade_shortcut, classes, statistics in parts": lambda: shortcut((1, 24, 24, 64), 16, classes=True, parts=4),
    "upsample_conv 2x2": lambda: up((1, 4, 20, 16, 64), 32, 2),
    "upsample_conv 2x2, weights that stay": lambda: up((1, 96, 96, 128), 384, 2),
    "upsample_conv 2x2, a cluster's sum": lambda: up((1, 4, 2, 2, 512), 128, 2),
    "upsample_conv 3x3 to classes": lambda: up((1, 19, 33, 80), 64, 4, classes=True),
    "upsample_conv 3x3": lambda: up((1, 64, 64, 64), 128, 4),
    "conv_pool 256x64 halo": lambda: pool((1, 2, 64, 64, 112), 64),
    "conv_pool 128x128, a cluster's sum": lambda: pool((1, 16, 4, 4, 256), 256),
    "conv_pool Winograd": lambda: pool((1, 2, 64, 64, 112), 64, winograd=True),
    "conv_pool Winograd, whole boxes": lambda: pool((1, 2, 10, 66, 128), 64, winograd=True),
    "conv_img 256x16 halo": lambda: ops.conv_img(halves(1, 64, 64, 64), weight(12, 3, 3, 64), floats(12)),
    "mask_conv3d": lambda: ops.mask_conv3d(halves(1, 2, 64, 64, 144), weight(160, 16, 9, 64), floats(22)),
    "occlusion_head": lambda: occlusion((2, 3, 9, 31, 144)),
    "occlusion_head, half a step of K": lambda: occlusion((1, 1, 17, 16, 16)),
    "patch_norm of bytes": stem,
    "patch_norm of floats in planes": lambda: stem(planes=True),
    "sparse_motion": motion,
    "flow_warp": warp,
    "keypoint_transform": driven,
    "stitch_mlp": stitching,
    "a stage of one kernel, 96 channels": lambda: stage((17, 16), 96),
    "a stage of one kernel, 192 channels": lambda: stage((9, 12), 192),
    "a stage of one kernel, 384 channels": lambda: stage((8, 9), 384),
    "a stage of one kernel, 768 channels": lambda: stage((8, 8), 768),
    "a stage with its step, 96 channels": lambda: stage((17, 16), 96, step=True),
    "a stage with its step, 192 channels": lambda: stage((9, 12), 192, step=True),
    "a stage with its step, 384 channels": lambda: stage((8, 9), 384, step=True),
    "a stage with its step, 768 channels": lambda: stage((8, 8), 768, step=True),
    "a stage of many images, 96 channels": lambda: stage((17, 16), 96, images=5),
    "a stage of many images, 192 channels": lambda: stage((9, 12), 192, images=4),
    "a stage of many images, 384 channels": lambda: stage((8, 9), 384, images=5),
    "a stage of many images, 768 channels": lambda: stage((8, 8), 768, images=5),
    "a block of the first stage": lambda: block((17, 16), 96),
    "a block of the last stage": lambda: block((8, 8), 768),
}


@torch.no_grad()
def main(pattern: str = "") -> None:
    chosen = {name: run for name, run in CASES.items() if pattern in name}
    if not chosen:
        raise SystemExit(f"no case has {pattern!r} in its name; there are: {', '.join(CASES)}")
    for name, run in chosen.items():
        answer = run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if not bool(answer.isfinite().all()):
            raise SystemExit(f"{name}: the answer is not finite")
        print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
