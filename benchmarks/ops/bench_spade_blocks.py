"""spade_blocks: the decoder's middle blocks up to the last one's second convolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random, feature_size
from benchmarks.ops._common import WinogradSpade, op_providers, torch_providers
from benchmarks.ops.bench_conv_spade import SLOPE
from benchmarks.ops.bench_conv_spade import Published as PublishedStep
from benchmarks.work import Subject
from lpkernels import ops, ref
from lpkernels.models.blocks import SPADE
from lpkernels.models.spade_generator import NUM_MIDDLE_BLOCKS

STEPS = 2 * NUM_MIDDLE_BLOCKS - 1
ACTIVATIONS, WEIGHTS = (0, 1, 2), (3, 5)  # their places; biases stay FP32


def make_inputs(batch: int, size: int, channels: int, random: Random) -> tuple[Any, ...]:
    """The op's arguments."""
    hidden, plane = SPADE.HIDDEN, (batch, size, size, channels)
    packed = []
    for _ in range(STEPS):
        weight = random.normal(channels, channels, 3, 3, scale=(9 * channels) ** -0.5)
        convs = [random.normal(channels, *shape, scale=(9 * hidden) ** -0.5) for shape in 2 * ((hidden, 3, 3), ())]
        packed.append((ops.pack_conv_weight(weight), random.normal(channels), *ops.pack_spade_weight(*convs)))
    activations = random.normal(*plane), random.normal(*plane), random.normal(*plane[:3], STEPS * hidden).relu()
    return *activations, *map(torch.stack, zip(*packed, strict=True)), SLOPE


class Published:
    """One operation at a time in the inputs' precision, channels-last; SPADE's weights unpacked once."""

    def __init__(self) -> None:
        self._step = PublishedStep()
        self._held: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def _of_steps(self, spade_weight: Tensor) -> tuple[Tensor, ...]:
        held = self._held.get(id(spade_weight))
        if held is None or held[0] is not spade_weight:
            held = self._held[id(spade_weight)] = (spade_weight, spade_weight.unbind())
        return held[1]

    def __call__(
        self,
        x: Tensor,
        dx: Tensor,
        actv: Tensor,
        weight: Tensor,
        bias: Tensor,
        spade_weight: Tensor,
        spade_bias: Tensor,
        slope: float,
    ) -> tuple[Tensor, Tensor]:
        parts = actv.split(spade_weight.shape[-1], dim=-1)
        stacked = weight, bias, parts, self._of_steps(spade_weight), spade_bias
        for i, own in enumerate(zip(*stacked, strict=True)):
            y = torch.empty_like(x) if i % 2 else None
            dx = self._step(dx, *own, slope, None if y is None else x, y)
            x = x if y is None else y
        return x, dx


def packed() -> WinogradSpade:
    return WinogradSpade("spade_blocks", WEIGHTS)


def subjects(context: Context) -> Iterator[Subject]:
    """The blocks at each batch."""
    channels, size = 2 * context.config.spade_generator.feature_channels, feature_size(context.config)
    for batch in context.batches:

        def inputs(seed: int, batch: int = batch) -> tuple[Any, ...]:
            return make_inputs(batch, size, channels, Random(seed, context.device))

        pixels, hidden = batch * size**2, SPADE.HIDDEN
        weights = STEPS * channels * 9 * (channels + 2 * hidden)
        yield Subject(
            level="ops",
            name="spade_blocks",
            shape=f"{STEPS} times {channels} -> {channels}, SPADE, at {size}x{size}",
            batch=batch,
            inputs=inputs,
            reference=ref.spade_blocks,
            providers=[
                *torch_providers(Published(), (*ACTIVATIONS, *WEIGHTS), context.device),
                *op_providers("spade_blocks", ACTIVATIONS, context.device, packed),
            ],
            elements=pixels * (4 * channels + STEPS * hidden) + weights,
            fixed_bytes=4 * 3 * STEPS * channels,
            flops=2 * pixels * weights,
            kernel=True,
        )
