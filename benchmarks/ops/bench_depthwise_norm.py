"""depthwise_norm: the first half of every block of the motion extractor."""

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

LOWERED = (0, 1)  # activations and weight; the bias stays FP32


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A grouped conv2d, channels-last, and a layer norm."""
    taps = weight.permute(2, 0, 1).unsqueeze(1)
    planes = F.conv2d(x.permute(0, 3, 1, 2), taps, bias.to(x.dtype), padding=3, groups=x.shape[3])
    return F.layer_norm(planes.permute(0, 2, 3, 1), x.shape[3:], eps=1e-6)


def subjects(context: Context) -> Iterator[Subject]:
    """Each stage at each batch."""
    for stage in stages(context):
        channels = stage.channels

        def inputs(seed: int, shape: tuple[int, ...] = stage.shape) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            return random.normal(*shape), random.normal(7, 7, shape[3], scale=1 / 7), random.normal(shape[3])

        yield Subject(
            level="ops",
            name="depthwise_norm",
            shape=str(stage),
            batch=stage.batch,
            inputs=inputs,
            reference=ref.depthwise_norm,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("depthwise_norm", LOWERED, context.device),
            ],
            elements=2 * stage.pixels * channels + 49 * channels,
            fixed_bytes=4 * channels,
            flops=2 * 49 * stage.pixels * channels,
            kernel=True,
        )
