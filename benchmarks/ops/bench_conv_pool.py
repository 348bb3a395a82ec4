"""conv_pool: the five down blocks of the hourglass."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import KEYPOINTS, Random, volume_shape
from benchmarks.ops._common import WinogradWeight, op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ops, ref
from lpkernels.models.config import LivePortraitConfig

LOWERED = (0, 1)  # activations and weight; the bias stays FP32
LOWERED_BEFORE = (0,)  # the op's own weight is packed in FP32 and cast then


def layers(config: LivePortraitConfig) -> list[tuple[int, int, int]]:
    """(channels, outputs, height and width) of each down block; the first's 110 channels are padded to 112."""
    dense = config.warping_module.dense_motion_params
    size = volume_shape(config)[-1]
    first = -(-(KEYPOINTS + 1) * (dense.compress + 1) // 16) * 16
    widths = [
        first,
        *(min(dense.max_features, dense.block_expansion * 2**i) for i in range(1, dense.num_blocks + 1)),
    ]
    return [(widths[i], widths[i + 1], size >> i) for i in range(dense.num_blocks)]


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The original's formula in the inputs' own precision; channels-last, where cuDNN is at its fastest."""
    return ref.conv_pool_in(x.dtype, x, weight, bias)


def subjects(context: Context) -> Iterator[Subject]:
    """Each down block at each batch."""
    depth = volume_shape(context.config)[1]
    for batch in context.batches:
        for level, (channels, outputs, size) in enumerate(layers(context.config)):
            grid, weights = (depth, size, size), 27 * channels * outputs
            pixels = batch * depth * size * size

            def inputs(
                seed: int,
                batch: int = batch,
                channels: int = channels,
                outputs: int = outputs,
                grid: tuple[int, ...] = grid,
            ) -> tuple[Tensor, ...]:
                random = Random(seed, context.device)
                weight = random.normal(outputs, channels, 3, 3, 3, scale=(27 * channels) ** -0.5)
                x = random.normal(batch, *grid, channels)
                return x, ops.pack_conv_weight(weight), random.normal(outputs)

            def packed(level: int = level) -> WinogradWeight:
                return WinogradWeight("conv_pool", asked=level == 0)

            yield Subject(
                level="ops",
                name="conv_pool",
                shape=f"{channels} -> {outputs}, 3x3x3 over {depth}x{size}x{size}",
                batch=batch,
                inputs=inputs,
                reference=ref.conv_pool,
                providers=[
                    *torch_providers(published, LOWERED, context.device),
                    *op_providers("conv_pool", LOWERED_BEFORE, context.device, packed),
                ],
                elements=pixels * channels + pixels // 4 * outputs + weights,
                fixed_bytes=4 * outputs,
                flops=2 * pixels * weights,
                kernel=True,
            )
