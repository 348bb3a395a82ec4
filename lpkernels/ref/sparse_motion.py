"""sparse_motion as the original network writes it: every motion's grid sampled, Gaussians on the whole grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels._channels_last import pixels, planes

KP_VARIANCE = 0.01


def sparse_motion(compressed: Tensor, background: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
    """Heatmaps and samples of all motions, (B, D, H, W, (K + 1) * (C + 1)); see ``lpkernels.ops.sparse_motion``.

    Computes in float64 if ``compressed`` is float64 and in float32 otherwise, whatever the inputs' dtype.
    """
    compute = _compute(compressed)
    batch, keypoints = kp_source.shape[:2]
    identity = _identity(compressed, compute)
    volume = planes(compressed.to(compute)).expand(batch, -1, -1, -1, -1)
    source, driving = (kp.to(compute)[:, :, None, None, None, :] for kp in (kp_source, kp_driving))

    still = background.to(compute).expand(batch, -1, -1, -1, -1)
    parts = [torch.zeros_like(still[..., :1]), still]
    for k in range(keypoints):
        heatmap = _gaussian(identity - driving[:, k]) - _gaussian(identity - source[:, k])
        motion = identity - driving[:, k] + source[:, k]
        sampled = F.grid_sample(volume, motion, mode="bilinear", padding_mode="zeros", align_corners=False)
        parts += [heatmap, pixels(sampled)]
    return torch.cat(parts, dim=-1).to(compressed.dtype)


def background_sample(compressed: Tensor) -> Tensor:
    """``compressed`` (B, D, H, W, C) under the identity motion, of the same shape and dtype, contiguous."""
    compute = _compute(compressed)
    identity = _identity(compressed, compute).expand(compressed.shape[0], -1, -1, -1, -1)
    sampled = F.grid_sample(planes(compressed.to(compute)), identity, align_corners=False)
    return pixels(sampled).to(compressed.dtype).contiguous()


def _compute(compressed: Tensor) -> torch.dtype:
    return torch.float64 if compressed.dtype == torch.float64 else torch.float32


def _identity(compressed: Tensor, dtype: torch.dtype) -> Tensor:
    """The grid of normalised coordinates (x, y, z), corners aligned: (1, D, H, W, 3)."""
    axes = [torch.linspace(-1, 1, size, dtype=dtype, device=compressed.device) for size in compressed.shape[1:4]]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], dim=-1)[None]


def _gaussian(offset: Tensor) -> Tensor:
    return torch.exp(-0.5 * (offset**2).sum(-1, keepdim=True) / KP_VARIANCE)
