"""depthwise_linear: the first half of every block of the motion extractor."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import stages
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 3)  # activations and weight; taps, biases and squares are FP32


def published(x: Tensor, taps: Tensor, taps_bias: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Grouped conv2d, layer norm, linear and GELU, and GRN's own sums of squares, in as many rows as the op gives."""
    return ref.depthwise_linear_in(x.dtype, x, taps, taps_bias, weight, bias)


def subjects(context: Context) -> Iterator[Subject]:
    """Each stage at each batch."""
    for stage in stages(context):
        channels, outputs = stage.channels, 4 * stage.channels
        tiles = stage.batch * ref.tile_count(stage.side, stage.side, channels)

        def inputs(seed: int, shape: tuple[int, ...] = stage.shape) -> tuple[Tensor, ...]:
            random, width = Random(seed, context.device), shape[3]
            taps = random.normal(7, 7, width, scale=1 / 7), random.normal(width)
            return (
                random.normal(*shape),
                *taps,
                random.normal(4 * width, width, scale=width**-0.5),
                random.normal(4 * width),
            )

        yield Subject(
            level="ops",
            name="depthwise_linear",
            shape=f"{stage} -> {outputs}",
            batch=stage.batch,
            inputs=inputs,
            reference=ref.depthwise_linear,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("depthwise_linear", LOWERED, context.device),
            ],
            elements=stage.pixels * (channels + outputs) + channels * outputs,
            fixed_bytes=4 * (50 * channels + outputs * (1 + tiles)),
            flops=2 * stage.pixels * channels * (49 + outputs),
            kernel=True,
        )
