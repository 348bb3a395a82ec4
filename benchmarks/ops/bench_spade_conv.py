"""spade_conv: the gamma and beta convolution of every SPADE of the decoder, with what follows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random, feature_size
from benchmarks.ops._common import WinogradWeight, op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ops, ref, rewrites
from lpkernels.models.blocks import SPADE

LOWERED = (0, 1, 3)  # hidden activations, weight and x; bias and statistics stay FP32
LOWERED_BEFORE = (0, 3)  # the op's own weight is packed in FP32 and cast then
SLOPE = 0.2


@dataclass(frozen=True)
class Norm:
    """One SPADE: channels and size of its answer; ``half``: x is still to be enlarged; ``beta``: not gamma alone."""

    channels: int
    size: int
    half: bool = False
    beta: bool = True

    def __str__(self) -> str:
        factor = "2x" if self.beta else ""
        enlarged = f", x {self.size // 2}x{self.size // 2}" if self.half else ""
        return f"{SPADE.HIDDEN} -> {factor}{self.channels} at {self.size}x{self.size}{enlarged}"


def norms(context: Context) -> list[Norm]:
    """The decoder's distinct ones: of a middle block; of up_0; of up_1."""
    decoder, size = context.config.spade_generator, feature_size(context.config)
    label = decoder.feature_channels
    return [
        Norm(2 * label, size),
        Norm(2 * label, 2 * size, half=True),
        Norm(2 * label, 2 * size, half=True, beta=False),
        Norm(label, 2 * size),
        Norm(label, 4 * size, half=True),
        Norm(label, 4 * size, half=True, beta=False),
        Norm(decoder.out_channels, 4 * size),
    ]


class Published:
    """Two convolutions, upsampling and one operation at a time in the inputs' precision; weights unpacked once."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, list[tuple[Tensor, Tensor]]]] = {}

    def _convs(self, weight: Tensor, bias: Tensor, channels: int) -> list[tuple[Tensor, Tensor]]:
        held = self._held.get(id(weight))
        if held is None or held[0] is not weight:
            rows, alone = weight.permute(0, 3, 1, 2), weight.shape[0] == channels
            weights = [rows] if alone else rewrites.split_gamma_beta(rows, 0)
            biases = [bias] if alone else rewrites.split_gamma_beta(bias, 0)
            convs = [
                (taps.contiguous(memory_format=torch.channels_last), (shift - one).to(taps.dtype))
                for taps, shift, one in zip(weights, biases, (1, 0), strict=False)
            ]
            held = self._held[id(weight)] = (weight, convs)
        return held[1]

    def __call__(self, actv: Tensor, weight: Tensor, bias: Tensor, x: Tensor, stats: Tensor) -> Tensor:
        convs = self._convs(weight, bias, x.shape[-1])
        gamma, *beta = (F.conv2d(actv.permute(0, 3, 1, 2), *conv, padding=1) for conv in convs)
        planes = x.permute(0, 3, 1, 2)
        if planes.shape[2:] != gamma.shape[2:]:
            planes = F.interpolate(planes, scale_factor=2)
        mean, rstd = stats.to(x.dtype)[..., None, None].unbind(2)
        y = (planes - mean) * rstd * (1 + gamma)
        return F.leaky_relu(y + beta[0] if beta else y, SLOPE).permute(0, 2, 3, 1)


def subjects(context: Context) -> Iterator[Subject]:
    """Every kind of SPADE in the decoder at each batch."""
    for batch in context.batches:
        for norm in norms(context):
            yield _subject(context, norm, batch)


def _subject(context: Context, norm: Norm, batch: int) -> Subject:
    hidden, channels, size = SPADE.HIDDEN, norm.channels, norm.size
    small = size // 2 if norm.half else size
    rows = 2 * channels if norm.beta else channels

    def inputs(seed: int) -> tuple[Tensor, ...]:
        random = Random(seed, context.device)
        scale = (9 * hidden) ** -0.5
        convs = [
            random.normal(channels, hidden, 3, 3, scale=scale),
            random.normal(channels, scale=scale),
            random.normal(channels, hidden, 3, 3, scale=scale),
            random.normal(channels, scale=scale),
        ]
        weight, bias = ops.pack_spade_weight(*convs) if norm.beta else ops.pack_gamma_weight(*convs[:2])
        x = random.normal(batch, small, small, channels)
        return random.normal(batch, size, size, hidden).relu(), weight, bias, x, ref.instance_norm_stats(x)

    def packed() -> WinogradWeight:  # of the middle blocks' SPADEs the network makes none: spade_blocks has them
        return WinogradWeight("spade_conv", asked=size > feature_size(context.config))

    pixels = batch * size * size
    return Subject(
        level="ops",
        name="spade_conv",
        shape=str(norm),
        batch=batch,
        inputs=inputs,
        reference=ref.spade_conv,
        providers=[
            *torch_providers(Published(), LOWERED, context.device),
            *op_providers("spade_conv", LOWERED_BEFORE, context.device, packed),
        ],
        elements=pixels * (hidden + channels) + batch * small * small * channels + rows * 9 * hidden,
        fixed_bytes=4 * (rows + 2 * batch * channels),
        flops=2 * pixels * rows * 9 * hidden,
        kernel=True,
    )
