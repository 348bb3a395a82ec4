"""mask_conv3d as the original network writes it: one conv3d, in FP32 (FP64 for FP64 inputs)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import _row_pairs, rewrites


def mask_conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The mask head on packed weights; see ``lpkernels.ops.mask_conv3d`` for shapes and packing."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return mask_conv3d_in(compute, x, weight, bias)


def mask_conv3d_in(compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with the convolution in the dtype ``compute``; logits (B, D, H, W, O)."""
    if _row_pairs.is_tiles(weight):
        weight = rewrites.taps_of_row_pairs(_row_pairs.kernels(weight.to(compute)), 2)
    kd, kh, channels = weight.shape[1:]
    outputs, kw = bias.shape[0], kd
    taps = weight[: kw * outputs].reshape(kw, outputs, kd, kh, channels).permute(1, 4, 2, 3, 0)
    padding = (kd // 2, kh // 2, kw // 2)
    planes = x.to(compute).permute(0, 4, 1, 2, 3)  # channels-last strides stay as they are
    logits = F.conv3d(planes, taps.to(compute), bias.to(compute), padding=padding)
    return logits.permute(0, 2, 3, 4, 1)
