"""flow_warp: softmax over 22 masks, deformation, and the trilinear sample of the feature volume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import KEYPOINTS, Random, volume_shape
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 3)  # mask logits and volume; keypoints stay FP32
LOWERED_LAST = (3,)  # mask_conv3d leaves FP32 logits


def published(
    mask_logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor, want_deformation: bool = True
) -> tuple[Tensor, Tensor]:
    """The original's arithmetic in the volume's own precision: 22 motion grids, weighted, summed, sampled."""
    dtype = volume.dtype
    mask_logits = mask_logits.to(dtype)
    depth, height, width = volume.shape[2:]
    axes = [torch.linspace(-1, 1, size, device=volume.device, dtype=dtype) for size in (depth, height, width)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    identity = torch.stack([x, y, z], dim=-1)[None, None]
    shift = (kp_source - kp_driving).to(dtype)[:, :, None, None, None]
    motions = torch.cat([identity.expand(volume.shape[0], 1, depth, height, width, 3), identity + shift], dim=1)
    deformation = (motions * F.softmax(mask_logits, dim=1)[..., None]).sum(dim=1)
    warped = F.grid_sample(volume, deformation, align_corners=False)
    return warped, deformation if want_deformation else deformation.new_empty(0)


def subjects(context: Context) -> Iterator[Subject]:
    """The warping module's shape at each batch: as published, and as the fused networks call it (channels last)."""
    channels, depth, height, width = volume_shape(context.config)
    voxels = depth * height * width
    for batch, last in itertools.product(context.batches, (False, True)):

        def inputs(seed: int, batch: int = batch, last: bool = last) -> tuple[Any, ...]:
            random = Random(seed, context.device)
            source, driving = random.keypoints(batch)
            logits = random.normal(batch, KEYPOINTS + 1, depth, height, width)
            volume = random.normal(batch, channels, depth, height, width)
            if not last:
                return logits, source, driving, volume
            logits, volume = (tensor.to(memory_format=torch.channels_last_3d) for tensor in (logits, volume))
            return logits, source, driving, volume, False

        lowered = LOWERED_LAST if last else LOWERED
        yield Subject(
            level="ops",
            name="flow_warp",
            shape=f"{KEYPOINTS + 1} masks, {channels}x{depth}x{height}x{width}" + ", channels last" * last,
            batch=batch,
            inputs=inputs,
            reference=ref.flow_warp,
            providers=[
                *torch_providers(published, lowered, context.device),
                *op_providers("flow_warp", lowered, context.device),
            ],
            # Volume in, warped volume out, and the logits; FP32 for everyone: keypoints, and either the deformation or
            # the logits.
            elements=batch * voxels * (2 * channels + (KEYPOINTS + 1) * (not last)),
            fixed_bytes=4 * batch * (voxels * (KEYPOINTS + 1 if last else 3) + 2 * 3 * KEYPOINTS),
            # Per voxel: exp, sum and division over the masks, three weighted sums, eight corners per channel.
            flops=batch * voxels * (4 * (KEYPOINTS + 1) + 6 * KEYPOINTS + 16 * channels + 40),
            kernel=True,
        )
