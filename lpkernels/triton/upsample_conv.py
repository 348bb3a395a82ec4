"""upsample_conv with Triton: all phases as one convolution of the library, then one pass that picks them apart.

    out[b, d, s i + r, s j + c, o] = act(y[b, d, i + shift(r), j + shift(c), phase(r, c) * O + o] + bias[o])

y is the answer of the 2 x 2 convolution with padding 1: (B * D, H + 1, W + 1, P * O), dense. Along an axis residue r
has phase r for scale 2, (0, 1, 1, 2)[r] for scale 4, and the last residue's answer lies one position on. A program owns
PIXELS large pixels by CHANNELS channels; the channels of a pixel are contiguous on both sides. Bound by memory.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpkernels._channels_last import pixel_stride
from lpkernels.triton._library import convolve

TILE = 4096  # elements of a program: 32 for each of 128 threads


@triton.jit
def _pick_phases(
    y,
    bias,
    out,
    slope,
    pixels,
    height,
    width,
    channels,
    out_stride,
    SCALE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """``height`` and ``width`` are those of the small grid."""
    PHASES: tl.constexpr = 2 if SCALE == 2 else 3
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    mask = (pixel < pixels)[:, None] & inside[None, :]
    row, column = pixel // (SCALE * width), pixel % (SCALE * width)
    plane, row = row // (SCALE * height), row % (SCALE * height)
    r, c = row % SCALE, column % SCALE
    phase = (r * PHASES + c) if SCALE == 2 else ((r + 1) // 2 * PHASES + (c + 1) // 2)
    h = row // SCALE + (r + 1) // SCALE
    w = column // SCALE + (c + 1) // SCALE
    source = ((plane * (height + 1) + h) * (width + 1) + w) * (PHASES * PHASES) + phase
    v = tl.load(y + source.to(tl.int64)[:, None] * channels + channel[None, :], mask, 0.0).to(tl.float32)
    v += tl.load(bias + channel, inside, 0.0)[None, :]
    v = tl.where(v > 0, v, slope * v)
    place = out + pixel.to(tl.int64)[:, None] * out_stride + channel[None, :]
    tl.store(place, v.to(out.dtype.element_ty), mask)


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor, negative_slope: float, out: Tensor) -> None:
    """Launch on checked arguments; see ``lpkernels.ops.upsample_conv``."""
    y = convolve(x, weight.flatten(0, 1), (1,) * (x.dim() - 2))
    height, width, channels = x.shape[-3], x.shape[-2], bias.shape[0]
    pixels = out[..., 0].numel()
    wide = min(64, triton.next_power_of_2(channels))
    tall = TILE // wide
    _pick_phases[(triton.cdiv(pixels, tall), triton.cdiv(channels, wide))](
        y,
        bias,
        out,
        negative_slope,
        pixels,
        height,
        width,
        channels,
        pixel_stride(out),
        SCALE=out.shape[-2] // width,
        PIXELS=tall,
        CHANNELS=wide,
    )
