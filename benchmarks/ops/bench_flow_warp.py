"""flow_warp: softmax over 22 masks, deformation, and the trilinear sample of the feature volume."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import KEYPOINTS, Random, volume_shape
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 3)  # mask logits and volume; keypoints stay FP32


def published(mask_logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
    """The original's arithmetic in the inputs' own precision: 22 motion grids, weighted, summed, sampled."""
    dtype = volume.dtype
    depth, height, width = volume.shape[2:]
    axes = [torch.linspace(-1, 1, size, device=volume.device, dtype=dtype) for size in (depth, height, width)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    identity = torch.stack([x, y, z], dim=-1)[None, None]
    shift = (kp_source - kp_driving).to(dtype)[:, :, None, None, None]
    motions = torch.cat([identity.expand(volume.shape[0], 1, depth, height, width, 3), identity + shift], dim=1)
    deformation = (motions * F.softmax(mask_logits, dim=1)[..., None]).sum(dim=1)
    return F.grid_sample(volume, deformation, align_corners=False), deformation


def subjects(context: Context) -> Iterator[Subject]:
    """The warping module's shape at each batch."""
    channels, depth, height, width = volume_shape(context.config)
    voxels = depth * height * width
    for batch in context.batches:

        def inputs(seed: int, batch: int = batch) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            source, driving = random.keypoints(batch)
            logits = random.normal(batch, KEYPOINTS + 1, depth, height, width)
            return logits, source, driving, random.normal(batch, channels, depth, height, width)

        yield Subject(
            level="ops",
            name="flow_warp",
            shape=f"{KEYPOINTS + 1} masks, {channels}x{depth}x{height}x{width}",
            batch=batch,
            inputs=inputs,
            reference=ref.flow_warp,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("flow_warp", LOWERED, context.device),
            ],
            # Logits and volume in, warped volume out; the deformation and the keypoints are FP32 for everyone.
            elements=batch * voxels * (KEYPOINTS + 1 + 2 * channels),
            fixed_bytes=4 * batch * (3 * voxels + 2 * 3 * KEYPOINTS),
            # Per voxel: exp, sum and division over the masks, three weighted sums, eight corners per channel.
            flops=batch * voxels * (4 * (KEYPOINTS + 1) + 6 * KEYPOINTS + 16 * channels + 40),
            kernel=True,
        )
