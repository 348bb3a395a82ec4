"""convnext_stage: all blocks of each stage of the motion extractor, and the step to it from the stage before."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import Stage, stages
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 3, 6, 8)  # activations and the linear layers' weights; taps, biases and gamma are FP32


def published(x: Tensor, *weights: Tensor) -> Tensor:
    """A step as layer norm and conv2d, each block as grouped conv2d, layer norm, linear, GELU, GRN and linear."""
    return ref.convnext_stage_in(x.dtype, x, *weights)


def subjects(context: Context) -> Iterator[Subject]:
    """Each stage at each batch."""
    depths = context.config.motion_extractor.depths
    every = stages(context)
    for index, (before, stage) in enumerate(zip([None, *every[:-1]], every, strict=True)):
        channels, wide, blocks = stage.channels, 4 * stage.channels, depths[index % len(depths)]
        first = before if before is not None and before.batch == stage.batch else None  # whose answer the step reads
        x = first or stage

        def inputs(
            seed: int, stage: Stage = stage, x: Stage = x, blocks: int = blocks, step: bool = first is not None
        ) -> tuple[Tensor, ...]:
            random, channels = Random(seed, context.device), stage.channels
            wide = 4 * channels
            own = (
                random.normal(*x.shape),
                random.normal(blocks, 7, 7, channels, scale=1 / 7),
                random.normal(blocks, channels),
                random.normal(blocks, wide, channels, scale=channels**-0.5),
                random.normal(blocks, wide),
                random.normal(blocks, wide),
                random.normal(blocks, channels, wide, scale=wide**-0.5),
                random.normal(blocks, channels),
            )
            if not step:
                return own
            weight = random.normal(channels, 2, 2, x.channels, scale=0.5 * x.channels**-0.5)
            return *own, weight, random.normal(channels)

        step = 4 * first.channels * channels if first else 0  # weights
        yield Subject(
            level="ops",
            name="convnext_stage",
            shape=f"{f'{first} -> ' if first else ''}{stage}, {blocks} blocks",
            batch=stage.batch,
            inputs=inputs,
            reference=ref.convnext_stage,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("convnext_stage", LOWERED, context.device),
            ],
            elements=x.pixels * x.channels + stage.pixels * channels + 2 * blocks * channels * wide + step,
            fixed_bytes=4 * (blocks * (51 * channels + 2 * wide) + (channels if first else 0)),
            flops=2 * stage.pixels * (blocks * channels * (49 + 2 * wide) + step),
            kernel=True,
        )
