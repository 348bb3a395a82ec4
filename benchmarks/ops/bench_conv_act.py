"""conv_act: the convolutions of the decoder's residual blocks and of the warping module, with what follows each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import KEYPOINTS, Random, feature_size, volume_shape
from benchmarks.ops._common import WinogradWeight, op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ops, ref
from lpkernels.models.blocks import SPADE
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.spade_generator import NUM_MIDDLE_BLOCKS


@dataclass(frozen=True)
class Layer:
    """One call: channels, outputs, taps an axis, the grid of pixels, and what follows.

    ``winograd``: the network asks for a weight of products that rows share.
    """

    channels: int
    outputs: int
    taps: int
    grid: tuple[int, ...]
    slope: float = 1.0
    residual: bool = False
    gain: bool = False
    stats: bool = False
    winograd: bool = False

    @property
    def shape(self) -> str:
        activation = {1.0: "", 0.0: "ReLU"}.get(self.slope, f"LeakyReLU {self.slope}")
        follows = [name for name in ("residual", "gain", "stats") if getattr(self, name)]
        kernel, grid = ("x".join(str(size) for size in sizes) for sizes in ([self.taps] * len(self.grid), self.grid))
        text = f"{self.channels} -> {self.outputs}, {kernel} over {grid}"
        return ", ".join([text, *([activation] if activation else []), *follows])

    def inputs(self, batch: int, random: Random) -> tuple[Any, ...]:
        """The op's arguments up to the last that is not None; ``stats`` is written into."""
        taps = [self.taps] * len(self.grid)
        scale = (self.channels * self.taps ** len(self.grid)) ** -0.5
        weight = ops.pack_conv_weight(random.normal(self.outputs, self.channels, *taps, scale=scale))
        x = random.normal(batch, *self.grid, weight.shape[-1])  # padded as the weight is
        arguments: list[Any] = [x, weight, random.normal(self.outputs)]
        arguments.append(self.slope)
        arguments.append(random.normal(batch, *self.grid, self.outputs) if self.residual else None)
        arguments.append(random.uniform(batch, *self.grid) if self.gain else None)
        arguments += [None, torch.empty(batch, self.outputs, 2, device=random.device) if self.stats else None]
        while arguments[-1] is None:
            arguments.pop()
        return tuple(arguments)

    @property
    def pixels(self) -> int:
        return torch.Size(self.grid).numel()

    @property
    def weights(self) -> int:
        return self.outputs * self.channels * self.taps ** len(self.grid)


def layers(config: LivePortraitConfig) -> list[Layer]:
    """Where a frame's time goes: each kind of the decoder's and warping module's convolutions once."""
    label, last = config.spade_generator.feature_channels, config.spade_generator.out_channels
    channels, depth, size, _ = volume_shape(config)
    dense = config.warping_module.dense_motion_params
    filters = -(-(dense.block_expansion + (KEYPOINTS + 1) * (dense.compress + 1)) // 16) * 16
    hidden = 2 * NUM_MIDDLE_BLOCKS * SPADE.HIDDEN
    small, middle, large = ((factor * feature_size(config),) * 2 for factor in (1, 2, 4))
    return [
        Layer(label, 2 * label, 3, small, stats=True),  # fc
        Layer(2 * label, 2 * label, 3, small, stats=True),  # conv_0 of a middle block
        Layer(2 * label, 2 * label, 3, small, residual=True, stats=True),  # conv_1
        Layer(label, hidden, 3, small, slope=0.0, winograd=True),  # mlp_shared of all middle blocks
        Layer(2 * label, label, 3, middle, stats=True, winograd=True),  # up_0
        Layer(2 * label, label, 1, middle, residual=True),
        Layer(label, last, 3, large, stats=True, winograd=True),  # up_1
        Layer(last, last, 3, large, slope=0.2, residual=True, winograd=True),
        Layer(filters, filters, 3, (depth, size, size), slope=0.0, winograd=True),  # the hourglass's last
        Layer(channels * depth, label, 3, small, slope=0.01),  # third
        Layer(label, label, 1, small, gain=True),  # fourth
    ]


def published(x: Tensor, *arguments: Any) -> Tensor:
    """The original's formula in the inputs' own precision; channels-last, where cuDNN is at its fastest."""
    y = ref.conv_act_in(x.dtype, x, *arguments[:5])
    if len(arguments) == 7:
        arguments[6].copy_(ref.channel_stats(y.float()))
    return y


def subjects(context: Context) -> Iterator[Subject]:
    """Each layer at each batch."""
    for batch in context.batches:
        for layer in layers(context.config):

            def inputs(seed: int, batch: int = batch, layer: Layer = layer) -> tuple[Any, ...]:
                return layer.inputs(batch, Random(seed, context.device))

            def packed(layer: Layer = layer) -> WinogradWeight:
                return WinogradWeight("conv_act", layer.winograd)

            lowered = (0, 4) if layer.residual else (0,)  # activations; bias, gain, stats stay FP32
            pixels = batch * layer.pixels
            yield Subject(
                level="ops",
                name="conv_act",
                shape=layer.shape,
                batch=batch,
                inputs=inputs,
                reference=lambda x, *arguments: ref.conv_act(x, *arguments[:5]),
                providers=[
                    *torch_providers(published, (*lowered, 1), context.device),
                    *op_providers("conv_act", lowered, context.device, packed),
                ],
                elements=pixels * (layer.channels + layer.outputs * (1 + layer.residual)) + layer.weights,
                fixed_bytes=4 * (layer.outputs * (1 + 2 * batch * layer.stats) + pixels * layer.gain),
                flops=2 * pixels * layer.weights,
                kernel=True,
            )
