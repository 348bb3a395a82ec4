"""pool_norm_linear: the motion extractor's heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import stages
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0,)  # activations; weights are FP32


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean and layer norm in the activations' precision, the heads as one linear layer in it too."""
    pooled = F.layer_norm(x.mean((1, 2)), x.shape[3:], eps=1e-6)
    return F.linear(pooled, weight.to(x.dtype), bias.to(x.dtype))


def subjects(context: Context) -> Iterator[Subject]:
    """The last stage at each batch, all heads side by side."""
    config = context.config.motion_extractor
    outputs = 3 * config.num_bins + 6 * config.num_kp + 4
    for stage in stages(context)[len(config.dims) - 1 :: len(config.dims)]:

        def inputs(seed: int, shape: tuple[int, ...] = stage.shape) -> tuple[Tensor, ...]:
            random, width = Random(seed, context.device), shape[3]
            return random.normal(*shape), random.normal(outputs, width, scale=width**-0.5), random.normal(outputs)

        yield Subject(
            level="ops",
            name="pool_norm_linear",
            shape=f"{stage} -> {outputs}",
            batch=stage.batch,
            inputs=inputs,
            reference=ref.pool_norm_linear,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("pool_norm_linear", LOWERED, context.device),
            ],
            elements=stage.pixels * stage.channels,
            fixed_bytes=4 * outputs * (stage.channels + 1 + stage.batch),
            flops=2 * stage.batch * outputs * stage.channels,
            kernel=True,
        )
