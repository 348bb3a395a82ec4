"""convnext_stage: all blocks of each stage of the motion extractor."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import Stage, stages
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 3, 6)  # activations and the linear layers' weights; taps, biases and gamma are FP32


def published(x: Tensor, *weights: Tensor) -> Tensor:
    """Each block as grouped conv2d, layer norm, linear, GELU, GRN and linear."""
    return ref.convnext_stage_in(x.dtype, x, *weights)


def subjects(context: Context) -> Iterator[Subject]:
    """Each stage at each batch."""
    depths = context.config.motion_extractor.depths
    for index, stage in enumerate(stages(context)):
        channels, wide, blocks = stage.channels, 4 * stage.channels, depths[index % len(depths)]

        def inputs(seed: int, stage: Stage = stage, blocks: int = blocks) -> tuple[Tensor, ...]:
            random, channels = Random(seed, context.device), stage.channels
            wide = 4 * channels
            return (
                random.normal(*stage.shape),
                random.normal(blocks, 7, 7, channels, scale=1 / 7),
                random.normal(blocks, channels),
                random.normal(blocks, wide, channels, scale=channels**-0.5),
                random.normal(blocks, wide),
                random.normal(blocks, wide),
                random.normal(blocks, channels, wide, scale=wide**-0.5),
                random.normal(blocks, channels),
            )

        yield Subject(
            level="ops",
            name="convnext_stage",
            shape=f"{stage}, {blocks} blocks",
            batch=stage.batch,
            inputs=inputs,
            reference=ref.convnext_stage,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("convnext_stage", LOWERED, context.device),
            ],
            elements=2 * stage.pixels * channels + 2 * blocks * channels * wide,
            fixed_bytes=4 * blocks * (51 * channels + 2 * wide),
            flops=2 * blocks * stage.pixels * channels * (49 + 2 * wide),
            kernel=True,
        )
