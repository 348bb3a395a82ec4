"""conv_spade: the convolutions of the decoder's middle blocks, each with the SPADE behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from benchmarks.context import Context
from benchmarks.networks import Random, feature_size
from benchmarks.ops._common import WinogradSpade, op_providers, torch_providers
from benchmarks.ops.bench_spade_conv import Published as PublishedSpade
from benchmarks.work import Subject
from lpkernels import ops, ref
from lpkernels.models.blocks import SPADE

SLOPE = 0.2
WEIGHTS = (1, 4)  # the places of both, which the op's caller lowers


@dataclass(frozen=True)
class Layer:
    """One call: channels and outputs, whether a residual is added and y kept."""

    channels: int
    outputs: int
    size: int
    residual: bool = False
    kept: bool = False

    def __str__(self) -> str:
        follows = [name for name, wanted in (("residual", self.residual), ("y kept", self.kept)) if wanted]
        return ", ".join([f"{self.channels} -> {self.outputs}, SPADE, at {self.size}x{self.size}", *follows])

    def inputs(self, batch: int, random: Random) -> tuple[Any, ...]:
        """The op's arguments up to the last that is not None; ``y`` is written into."""
        hidden, outputs = SPADE.HIDDEN, self.outputs
        weight = random.normal(outputs, self.channels, 3, 3, scale=(9 * self.channels) ** -0.5)
        scale = (9 * hidden) ** -0.5
        convs = [random.normal(outputs, *shape, scale=scale) for shape in 2 * ((hidden, 3, 3), ())]
        x, actv = (random.normal(batch, self.size, self.size, channels) for channels in (self.channels, hidden))
        plane = batch, self.size, self.size, outputs
        arguments: list[Any] = [x, ops.pack_conv_weight(weight), random.normal(outputs), actv.relu()]
        arguments += [*ops.pack_spade_weight(*convs), SLOPE]
        arguments.append(random.normal(*plane) if self.residual else None)
        arguments.append(x.new_empty(plane) if self.kept else None)
        while arguments[-1] is None:
            arguments.pop()
        return tuple(arguments)


def layers(context: Context) -> list[Layer]:
    """fc; conv_0 and conv_1 of a middle block."""
    label, size = context.config.spade_generator.feature_channels, feature_size(context.config)
    return [
        Layer(label, 2 * label, size, kept=True),
        Layer(2 * label, 2 * label, size),
        Layer(2 * label, 2 * label, size, residual=True, kept=True),
    ]


class Published:
    """One operation at a time in the inputs' precision, channels-last; SPADE's weights unpacked once."""

    def __init__(self) -> None:
        self._spade = PublishedSpade()

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        actv: Tensor,
        spade_weight: Tensor,
        spade_bias: Tensor,
        _: float,
        residual: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        planes = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias.to(x.dtype), padding=1)
        before = planes.permute(0, 2, 3, 1) if residual is None else planes.permute(0, 2, 3, 1) + residual
        if y is not None:
            y.copy_(before)
        return self._spade(actv, spade_weight, spade_bias, before, ref.channel_stats(before.float()))


def packed() -> WinogradSpade:
    return WinogradSpade("conv_spade", WEIGHTS)


def subjects(context: Context) -> Iterator[Subject]:
    """Each layer at each batch."""
    for batch in context.batches:
        for layer in layers(context):

            def inputs(seed: int, batch: int = batch, layer: Layer = layer) -> tuple[Any, ...]:
                return layer.inputs(batch, Random(seed, context.device))

            planes = ((7, layer.residual), (8, layer.kept))  # biases stay FP32
            activations = (0, 3, *(index for index, there in planes if there))
            pixels, hidden = batch * layer.size**2, SPADE.HIDDEN
            weights = layer.outputs * 9 * (layer.channels + 2 * hidden)
            yield Subject(
                level="ops",
                name="conv_spade",
                shape=str(layer),
                batch=batch,
                inputs=inputs,
                reference=lambda *arguments: ref.conv_spade(*arguments[:8])[0],
                providers=[
                    *torch_providers(Published(), (*activations, *WEIGHTS), context.device),
                    *op_providers("conv_spade", activations, context.device, packed),
                ],
                elements=pixels * (layer.channels + hidden + (1 + layer.residual + layer.kept) * layer.outputs)
                + weights,
                fixed_bytes=4 * 3 * layer.outputs,
                flops=2 * pixels * weights,
                kernel=True,
            )
