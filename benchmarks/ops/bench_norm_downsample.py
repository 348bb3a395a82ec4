"""norm_downsample: the three steps between the motion extractor's stages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import stages
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 1)  # activations and weight; the bias stays FP32


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A layer norm and a conv2d, channels-last."""
    normalized = F.layer_norm(x, x.shape[3:], eps=1e-6).permute(0, 3, 1, 2)
    return F.conv2d(normalized, weight.permute(0, 3, 1, 2), bias.to(x.dtype), stride=2).permute(0, 2, 3, 1)


def subjects(context: Context) -> Iterator[Subject]:
    """Each step at each batch."""
    for stage, following in pairwise(stages(context)):
        if stage.batch != following.batch:
            continue
        channels, outputs = stage.channels, following.channels

        def inputs(seed: int, shape: tuple[int, ...] = stage.shape, outputs: int = outputs) -> tuple[Tensor, ...]:
            random, width = Random(seed, context.device), shape[3]
            weight = random.normal(outputs, 2, 2, width, scale=0.5 * width**-0.5)
            return random.normal(*shape), weight, random.normal(outputs)

        yield Subject(
            level="ops",
            name="norm_downsample",
            shape=f"{stage} -> {outputs}",
            batch=stage.batch,
            inputs=inputs,
            reference=ref.norm_downsample,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("norm_downsample", LOWERED, context.device),
            ],
            elements=stage.pixels * channels + following.pixels * outputs + 4 * channels * outputs,
            fixed_bytes=4 * outputs,
            flops=2 * following.pixels * 4 * channels * outputs,
            kernel=True,
        )
