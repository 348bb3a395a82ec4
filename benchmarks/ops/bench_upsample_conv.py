"""upsample_conv: the up blocks of the hourglass, and SPADE's mlp_shared at two and four times the feature's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random, feature_size, volume_shape
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ops, ref
from lpkernels.models.blocks import SPADE
from lpkernels.models.config import LivePortraitConfig
from lpkernels.ops.upsample_conv import SCALES

OP_LOWERED = (0, 1)  # activations and weight; the bias stays FP32
PUBLISHED_LOWERED = (0,)  # the weight is unpacked in FP32 and cast then: taking sums apart in FP16 would cost digits


@dataclass(frozen=True)
class Layer:
    """One call: channels, outputs, the small grid of pixels, the scale."""

    channels: int
    outputs: int
    grid: tuple[int, ...]
    scale: int = 2

    def inputs(self, batch: int, random: Random) -> tuple[Tensor, Tensor, Tensor, float]:
        taps = [3] * len(self.grid)
        weight = random.normal(self.outputs, self.channels, *taps, scale=(self.channels * 3 ** len(taps)) ** -0.5)
        x = random.normal(batch, *self.grid, self.channels)
        return x, ops.pack_upsample_weight(weight, self.scale), random.normal(self.outputs), 0.0


def layers(config: LivePortraitConfig) -> list[Layer]:
    """Every up block, and the merged mlp_shared of each block of the decoder that is enlarged."""
    dense = config.warping_module.dense_motion_params
    depth, size = volume_shape(config)[1:3]

    def width(i: int) -> int:
        return min(dense.max_features, dense.block_expansion * 2**i)

    blocks = reversed(range(dense.num_blocks))
    ups = [
        Layer(width(i + 1) * (1 if i == dense.num_blocks - 1 else 2), width(i), (depth, size >> i + 1, size >> i + 1))
        for i in blocks
    ]
    label, grid = config.spade_generator.feature_channels, (feature_size(config),) * 2
    return [*ups, Layer(label, 2 * SPADE.HIDDEN, grid), Layer(label, 2 * SPADE.HIDDEN, grid, scale=4)]


class Published:
    """Nearest upsampling and a convolution in the inputs' own precision; the weight is unpacked once."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def _unpacked(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        key = (id(packed), dtype)
        held = self._held.get(key)
        if held is None or held[0] is not packed:
            held = self._held[key] = (packed, unpack(packed).to(dtype).movedim(-1, 1))
        return held[1]

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor, negative_slope: float) -> Tensor:
        scale = SCALES[packed.shape[0]]
        convolve, factors = (F.conv3d, (1, scale, scale)) if x.dim() == 5 else (F.conv2d, (scale, scale))
        large = F.interpolate(x.movedim(-1, 1), scale_factor=factors)
        y = convolve(large, self._unpacked(packed, x.dtype), bias.to(x.dtype), padding=1)
        return F.leaky_relu(y, negative_slope).movedim(1, -1)


def unpack(packed: Tensor) -> Tensor:
    """The weight (O, [3,] 3, 3, C) that ``pack_upsample_weight`` summed up."""
    axis_phases = SCALES[packed.shape[0]] // 2 + 1
    phases = packed.unflatten(0, (axis_phases, axis_phases))
    return _three_taps(_three_taps(phases, -3), -2)


def _three_taps(phases: Tensor, axis: int) -> Tensor:
    # Along an axis the first phase has taps (w0, w1 + w2), the last one (w0 + w1, w2).
    (outer, inner), (_, last) = phases[0].unbind(axis), phases[-1].unbind(axis)
    return torch.stack([outer, inner - last, last], axis)


def subjects(context: Context) -> Iterator[Subject]:
    """Each layer at each batch; the operations counted are those of the published formula."""
    for batch in context.batches:
        for layer in layers(context.config):

            def inputs(seed: int, batch: int = batch, layer: Layer = layer) -> tuple[Tensor, Tensor, Tensor, float]:
                return layer.inputs(batch, Random(seed, context.device))

            pixels = batch * torch.Size(layer.grid).numel()
            weights = layer.outputs * layer.channels * 3 ** len(layer.grid)
            grid = "x".join(str(size) for size in layer.grid)
            yield Subject(
                level="ops",
                name="upsample_conv",
                shape=f"{layer.channels} -> {layer.outputs}, x{layer.scale} from {grid}",
                batch=batch,
                inputs=inputs,
                reference=ref.upsample_conv,
                providers=[
                    *torch_providers(Published(), PUBLISHED_LOWERED, context.device),
                    *op_providers("upsample_conv", OP_LOWERED, context.device),
                ],
                elements=pixels * (layer.channels + layer.scale**2 * layer.outputs) + weights,
                fixed_bytes=4 * layer.outputs,
                flops=2 * pixels * layer.scale**2 * weights,
                kernel=True,
            )
