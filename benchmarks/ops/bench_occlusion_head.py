"""occlusion_head: the 7x7 convolution over all channels and depths of the hourglass to one occlusion map."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import KEYPOINTS, Random, volume_shape
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ops, ref

LOWERED = (0, 1)  # activations and weight; the bias stays FP32
KERNEL = 7


class Published:
    """One conv2d over (d, c) as channels in the inputs' own precision; the weight is unpacked once."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def _unpacked(self, packed: Tensor) -> Tensor:
        held = self._held.get(id(packed))
        if held is None or held[0] is not packed:
            taps = packed[: KERNEL**2].permute(1, 2, 0).reshape(1, -1, KERNEL, KERNEL)
            held = self._held[id(packed)] = (packed, taps)
        return held[1]

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
        planes = x.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return torch.sigmoid(F.conv2d(planes, self._unpacked(packed), bias.to(x.dtype), padding=3))[:, 0]


def subjects(context: Context) -> Iterator[Subject]:
    """The dense motion network's shape at each batch."""
    dense = context.config.warping_module.dense_motion_params
    channels = (KEYPOINTS + 1) * (dense.compress + 1) + dense.block_expansion
    _, depth, height, width = volume_shape(context.config)
    pixels = height * width
    for batch in context.batches:

        def inputs(seed: int, batch: int = batch) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            x = torch.zeros(batch, depth, height, width, ops.padded_channels(channels), device=context.device)
            x[..., :channels] = random.normal(batch, depth, height, width, channels).relu()
            weight = random.normal(1, channels * depth, KERNEL, KERNEL, scale=(49 * channels * depth) ** -0.5)
            return x, ops.pack_occlusion_weight(weight, depth), random.normal(1)

        yield Subject(
            level="ops",
            name="occlusion_head",
            shape=f"{channels}x{depth} -> 1, 7x7 over {height}x{width}",
            batch=batch,
            inputs=inputs,
            reference=ref.occlusion_head,
            providers=[
                *torch_providers(Published(), LOWERED, context.device),
                *op_providers("occlusion_head", LOWERED, context.device),
            ],
            elements=batch * depth * pixels * channels + 49 * depth * channels,
            fixed_bytes=4 * batch * pixels,
            flops=2 * batch * pixels * 49 * depth * channels,
            kernel=True,
        )
