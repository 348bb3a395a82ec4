"""linear_gelu: the widening linear layer of every block of the motion extractor."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import stages
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 1)  # activations and weight; bias and squares are FP32


def published(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Linear, GELU, and GRN's own sums of squares, in as many rows as the op gives."""
    return ref.linear_gelu_in(x.dtype, x, weight, bias)


def subjects(context: Context) -> Iterator[Subject]:
    """Each stage at each batch."""
    for stage in stages(context):
        channels, outputs = stage.channels, 4 * stage.channels
        rows = stage.batch * -(-(stage.side**2) // ref.row_block(stage.side**2))

        def inputs(seed: int, shape: tuple[int, ...] = stage.shape) -> tuple[Tensor, ...]:
            random, width = Random(seed, context.device), shape[3]
            return random.normal(*shape), random.normal(4 * width, width, scale=width**-0.5), random.normal(4 * width)

        yield Subject(
            level="ops",
            name="linear_gelu",
            shape=f"{stage} -> {outputs}",
            batch=stage.batch,
            inputs=inputs,
            reference=ref.linear_gelu,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("linear_gelu", LOWERED, context.device),
            ],
            elements=stage.pixels * (channels + outputs) + channels * outputs,
            fixed_bytes=4 * outputs * (1 + rows),
            flops=2 * stage.pixels * channels * outputs,
            kernel=True,
        )
