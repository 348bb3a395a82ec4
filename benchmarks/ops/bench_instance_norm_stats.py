"""instance_norm_stats: mean and reciprocal deviation of every channel, at the decoder's sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random, feature_size
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0,)


def published(x: Tensor) -> Tensor:
    """PyTorch's own variance and mean in one call; it accumulates halves in FP32 and answers in FP16."""
    var, mean = torch.var_mean(x, dim=(1, 2), correction=0)
    return torch.stack([mean, torch.rsqrt(var + 1e-5)], dim=-1)


def subjects(context: Context) -> Iterator[Subject]:
    """What the decoder's blocks normalise, at each batch."""
    decoder, size = context.config.spade_generator, feature_size(context.config)
    label = decoder.feature_channels
    for batch in context.batches:
        for channels, side in ((2 * label, size), (label, 2 * size), (decoder.out_channels, 4 * size)):

            def inputs(
                seed: int, shape: tuple[int, ...] = (batch, side, side, channels), channels: int = channels
            ) -> tuple[Tensor, ...]:
                random = Random(seed, context.device)
                return (random.normal(*shape) + random.normal(channels),)

            yield Subject(
                level="ops",
                name="instance_norm_stats",
                shape=f"{channels} channels at {side}x{side}",
                batch=batch,
                inputs=inputs,
                reference=ref.instance_norm_stats,
                providers=[
                    *torch_providers(published, LOWERED, context.device),
                    *op_providers("instance_norm_stats", LOWERED, context.device),
                ],
                elements=batch * side * side * channels,
                fixed_bytes=8 * batch * channels,
                flops=4 * batch * side * side * channels,  # sum, difference, square, sum
                kernel=True,
            )
