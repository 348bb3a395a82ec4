"""sparse_motion: the hourglass's input, heatmaps and samples of 22 motions."""

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

LOWERED = (0, 1)  # compressed volume and background; keypoints stay FP32


def published(compressed: Tensor, background: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
    """The original's arithmetic in the volume's own precision: 22 grids, one sample of the volume repeated, Gaussians.

    Channels are moved last and padded as the op's are, which adds a copy that the original makes in its concatenation.
    """
    dtype, (batch, keypoints) = compressed.dtype, kp_source.shape[:2]
    axes = [torch.linspace(-1, 1, size, device=compressed.device, dtype=dtype) for size in compressed.shape[1:4]]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    identity = torch.stack([x, y, z], dim=-1)[None, None]
    source, driving = (kp.to(dtype)[:, :, None, None, None] for kp in (kp_source, kp_driving))
    motions = torch.cat([identity.expand(batch, *identity.shape[1:]), identity - driving + source], dim=1)
    volume = compressed.permute(0, 4, 1, 2, 3)
    repeated = volume.unsqueeze(1).expand(-1, keypoints + 1, -1, -1, -1, -1).flatten(0, 1)
    samples = F.grid_sample(repeated, motions.flatten(0, 1), align_corners=False).unflatten(0, (batch, -1))

    def gaussian(kp: Tensor) -> Tensor:
        return torch.exp(-50 * ((identity - kp) ** 2).sum(-1))

    heatmaps = F.pad(gaussian(driving) - gaussian(source), (0, 0, 0, 0, 0, 0, 1, 0))
    made = torch.cat([heatmaps.unsqueeze(2), samples], dim=2).flatten(1, 2).permute(0, 2, 3, 4, 1)
    return _padded(made)


def _padded(made: Tensor) -> Tensor:
    return F.pad(made, (0, ops.padded_channels(made.shape[-1]) - made.shape[-1]))


def subjects(context: Context) -> Iterator[Subject]:
    """The dense motion network's shape at each batch."""
    _, depth, height, width = volume_shape(context.config)
    channels = context.config.warping_module.dense_motion_params.compress
    voxels, motions = depth * height * width, KEYPOINTS + 1
    outputs = ops.padded_channels(motions * (channels + 1))
    for batch in context.batches:

        def inputs(seed: int, batch: int = batch) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            source, driving = random.keypoints(batch)
            compressed = random.normal(batch, depth, height, width, channels).relu()
            return compressed, ops.background_sample(compressed), source, driving

        yield Subject(
            level="ops",
            name="sparse_motion",
            shape=f"{motions} motions, {channels}x{depth}x{height}x{width}",
            batch=batch,
            inputs=inputs,
            reference=lambda *args: _padded(ref.sparse_motion(*args)),
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("sparse_motion", LOWERED, context.device),
            ],
            # The compressed volume and its background in, all motions out.
            elements=batch * voxels * (2 * channels + outputs),
            fixed_bytes=4 * batch * 2 * 3 * KEYPOINTS,
            # Per voxel and keypoint: eight corners per channel with their weights, two Gaussians.
            flops=batch * voxels * KEYPOINTS * (16 * channels + 40),
            kernel=True,
        )
