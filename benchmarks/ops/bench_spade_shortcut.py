"""spade_shortcut: the shortcut of the decoder's last block, of hidden activations as they are or as their classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random, feature_size
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ops, ref, rewrites
from lpkernels.models.blocks import SPADE

LOWERED = (0, 1, 3, 4)  # hidden activations, weights and x; bias and statistics stay FP32
PHASES = len(rewrites.CLASS_OF_ROW) ** 2


class Published:
    """SPADE's convolutions and the 1x1 one, one operation at a time in the inputs' precision; weights unpacked once.

    Beta stays merged with the 1x1 convolution: fewer operations than published.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, list[tuple[Tensor, Tensor]]]] = {}

    def _convs(self, weight: Tensor, bias: Tensor, channels: int) -> list[tuple[Tensor, Tensor]]:
        held = self._held.get(id(weight))
        if held is None or held[0] is not weight:
            rows = weight[: bias.shape[0]].permute(0, 3, 1, 2)  # of classes the first phase: the original kernel
            widths = [channels, bias.shape[0] - channels]
            convs = [
                (taps.contiguous(memory_format=torch.channels_last), shift.to(taps.dtype))
                for taps, shift in zip(rows.split(widths), bias.split(widths), strict=True)
            ]
            held = self._held[id(weight)] = (weight, convs)
        return held[1]

    def __call__(
        self, actv: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, x: Tensor, stats: Tensor
    ) -> Tensor:
        gamma, beta = self._convs(weight, bias, x.shape[-1])
        hidden, planes = actv.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2)
        if weight.shape[0] == PHASES * bias.shape[0]:
            hidden = rewrites.expand_classes(hidden)
        gamma1 = F.conv2d(hidden, *gamma, padding=1)
        if planes.shape[2:] != gamma1.shape[2:]:
            planes = F.interpolate(planes, scale_factor=2)
        mean, rstd = stats.to(x.dtype)[..., None, None].unbind(2)
        y = F.conv2d((planes - mean) * rstd * gamma1, shortcut[..., None, None])
        return (y + F.conv2d(hidden, *beta, padding=1)).permute(0, 2, 3, 1)


def subjects(context: Context) -> Iterator[Subject]:
    """Both forms of the activations at each batch."""
    for batch in context.batches:
        for classes in (True, False):
            yield _subject(context, batch, classes)


def _subject(context: Context, batch: int, classes: bool) -> Subject:
    decoder, small = context.config.spade_generator, feature_size(context.config)
    hidden, channels, outputs, size = SPADE.HIDDEN, decoder.feature_channels, decoder.out_channels, 4 * small
    stored = rewrites.CLASSES * small if classes else size
    rows = channels + outputs

    def inputs(seed: int) -> tuple[Tensor, ...]:
        random = Random(seed, context.device)
        scale = (9 * hidden) ** -0.5
        weight, bias, shortcut = ops.pack_shortcut_weight(
            random.normal(outputs, channels, 1, 1, scale=channels**-0.5),
            random.normal(outputs),
            random.normal(channels, hidden, 3, 3, scale=scale),
            random.normal(channels, scale=scale),
            random.normal(channels, hidden, 3, 3, scale=scale),
            random.normal(channels, scale=scale),
        )
        weight = ops.pack_class_weight(weight) if classes else weight
        x = random.normal(batch, size // 2, size // 2, channels)
        actv = random.normal(batch, stored, stored, hidden).relu()
        return actv, weight, bias, shortcut, x, ref.instance_norm_stats(x)

    pixels = batch * size * size
    weights = rows * 9 * hidden * (PHASES if classes else 1) + outputs * channels
    return Subject(
        level="ops",
        name="spade_shortcut",
        shape=f"{hidden} -> {channels} -> {outputs} at {size}x{size}" + (", classes" if classes else ""),
        batch=batch,
        inputs=inputs,
        reference=ref.spade_shortcut,
        providers=[
            *torch_providers(Published(), LOWERED, context.device),
            *op_providers("spade_shortcut", LOWERED, context.device),
        ],
        elements=batch * stored * stored * hidden + pixels * (outputs + channels // 4) + weights,
        fixed_bytes=4 * (rows + 2 * batch * channels),
        flops=2 * pixels * (rows * 9 * hidden + outputs * channels),
        kernel=True,
    )
