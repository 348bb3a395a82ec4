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

Inputs = tuple[Tensor, Tensor, Tensor, float, int]  # x, weight (O, [3,] 3, 3, C), bias, negative slope, scale


@dataclass(frozen=True)
class Layer:
    """One call: channels, outputs, the small grid of pixels, the scale."""

    channels: int
    outputs: int
    grid: tuple[int, ...]
    scale: int = 2

    def inputs(self, batch: int, random: Random) -> Inputs:
        taps = [3] * len(self.grid)
        weight = random.normal(self.outputs, *taps, self.channels, scale=(self.channels * 3 ** len(taps)) ** -0.5)
        x = random.normal(batch, *self.grid, self.channels)
        return x, weight, random.normal(self.outputs), 0.0, self.scale


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


def published(x: Tensor, weight: Tensor, bias: Tensor, negative_slope: float, scale: int) -> Tensor:
    """Nearest upsampling and a convolution in the inputs' own precision; channels-last, where cuDNN is at its best."""
    convolve, factors = (F.conv3d, (1, scale, scale)) if x.dim() == 5 else (F.conv2d, (scale, scale))
    large = F.interpolate(x.movedim(-1, 1), scale_factor=factors)
    y = convolve(large, weight.movedim(-1, 1), bias.to(x.dtype), padding=1)
    return F.leaky_relu(y, negative_slope).movedim(1, -1)


def reference(x: Tensor, weight: Tensor, bias: Tensor, negative_slope: float, scale: int) -> Tensor:
    """The op's own reference."""
    return ref.upsample_conv(x, ops.pack_upsample_weight(weight.movedim(-1, 1), scale), bias, negative_slope)


class Packed:
    """The op with each weight in the form that its backend takes, packed once in FP32."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def _pack(self, x: Tensor, weight: Tensor, scale: int) -> Tensor:
        plain = weight.movedim(-1, 1)
        shared = ops.shares_products(x.device.type, x.dtype, x.shape[-1], weight.shape[0])
        packed = ops.pack_upsample_products(plain) if shared else ops.pack_upsample_weight(plain, scale)
        return packed.to(x.dtype)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor, negative_slope: float, scale: int) -> Tensor:
        held = self._held.get(id(weight))
        if held is None or held[0] is not weight:
            held = self._held[id(weight)] = weight, self._pack(x, weight, scale)
        return ops.upsample_conv(x, held[1], bias, negative_slope, scale=scale)


def subjects(context: Context) -> Iterator[Subject]:
    """Each layer at each batch; the operations counted are those of the published formula."""
    for batch in context.batches:
        for layer in layers(context.config):

            def inputs(seed: int, batch: int = batch, layer: Layer = layer) -> Inputs:
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
                reference=reference,
                providers=[
                    *torch_providers(published, (0, 1), context.device),
                    *op_providers("upsample_conv", (0,), context.device, Packed),
                ],
                elements=pixels * (layer.channels + layer.scale**2 * layer.outputs) + weights,
                fixed_bytes=4 * layer.outputs,
                flops=2 * pixels * layer.scale**2 * weights,
                kernel=True,
            )
