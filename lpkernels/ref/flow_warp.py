"""flow_warp as the original network writes it: every motion's grid, their mask-weighted sum, one grid sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def flow_warp(
    mask_logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor, want_deformation: bool = True
) -> tuple[Tensor, Tensor]:
    """Warp a feature volume by the motion that mask logits select; see ``lpkernels.ops.flow_warp`` for the shapes.

    Computes in float64 if ``volume`` is float64 and in float32 otherwise, whatever the inputs' dtype.
    """
    compute = torch.float64 if volume.dtype == torch.float64 else torch.float32
    batch, _, depth, height, width = mask_logits.shape
    axes = [torch.linspace(-1, 1, size, dtype=compute, device=volume.device) for size in (depth, height, width)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    identity = torch.stack([x, y, z], dim=-1)[None, None]  # (1, 1, D, H, W, 3)

    shift = (kp_source - kp_driving).to(compute)[:, :, None, None, None, :]  # (B, K, 1, 1, 1, 3)
    background = identity.expand(batch, 1, depth, height, width, 3)
    motions = torch.cat([background, identity + shift], dim=1)  # (B, K + 1, D, H, W, 3)
    masks = F.softmax(mask_logits.to(compute), dim=1)[..., None]
    deformation = (motions * masks).sum(dim=1)

    warped = F.grid_sample(volume.to(compute), deformation, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.to(volume.dtype), deformation if want_deformation else deformation.new_empty(0)
