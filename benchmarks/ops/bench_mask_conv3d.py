"""mask_conv3d: the mask head's 7x7x7 convolution, 142 -> 22 channels over the whole volume."""

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

LOWERED = (0,)  # activations; the weight is packed in FP32 and cast then, and the bias stays FP32
OUTPUTS = KEYPOINTS + 1


class Published:
    """One conv3d in the inputs' own precision; the weight is unpacked once, as a network would hold it."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def _unpacked(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        key = (id(packed), dtype)
        held = self._held.get(key)
        if held is None or held[0] is not packed:
            taps = unpack(packed).to(dtype).contiguous(memory_format=torch.channels_last_3d)
            held = self._held[key] = (packed, taps)
        return held[1]

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
        return F.conv3d(x.permute(0, 4, 1, 2, 3), self._unpacked(packed, x.dtype), bias.to(x.dtype), padding=3)


class Packed:
    """The op, with the form of weight that its backend takes, packed once."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, torch.dtype, bool], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
        pairs = ops.pairs_rows(x.device.type, x.dtype, x.shape[-1], OUTPUTS)
        key = (id(packed), x.dtype, pairs)
        held = self._held.get(key)
        if held is None or held[0] is not packed:
            weight = ops.pack_mask_row_pairs(unpack(packed)) if pairs else packed
            held = self._held[key] = (packed, weight.to(x.dtype))
        return ops.mask_conv3d(x, held[1], bias)


def unpack(packed: Tensor) -> Tensor:
    """The weight (O, C, 7, 7, 7) that ``pack_mask_weight`` laid out."""
    return packed[: 7 * OUTPUTS].reshape(7, OUTPUTS, 7, 7, -1).permute(1, 4, 2, 3, 0)


def subjects(context: Context) -> Iterator[Subject]:
    """The dense motion network's shape at each batch."""
    dense = context.config.warping_module.dense_motion_params
    channels = OUTPUTS * (dense.compress + 1) + dense.block_expansion
    _, depth, height, width = volume_shape(context.config)
    voxels = depth * height * width
    for batch in context.batches:

        def inputs(seed: int, batch: int = batch) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            x = torch.zeros(batch, depth, height, width, ops.padded_channels(channels), device=context.device)
            x[..., :channels] = random.normal(batch, depth, height, width, channels).relu()
            weight = random.normal(OUTPUTS, channels, 7, 7, 7, scale=(343 * channels) ** -0.5)
            return x, ops.pack_mask_weight(weight), random.normal(OUTPUTS)

        yield Subject(
            level="ops",
            name="mask_conv3d",
            shape=f"{channels} -> {OUTPUTS}, 7x7x7 over {depth}x{height}x{width}",
            batch=batch,
            inputs=inputs,
            reference=lambda *args: ref.mask_conv3d(*args).permute(0, 4, 1, 2, 3),
            providers=[
                *torch_providers(Published(), LOWERED, context.device),
                *op_providers("mask_conv3d", LOWERED, context.device, Packed),
            ],
            elements=batch * voxels * channels + OUTPUTS * channels * 343,
            fixed_bytes=4 * batch * voxels * OUTPUTS,
            flops=2 * batch * voxels * OUTPUTS * channels * 343,
            kernel=True,
        )
