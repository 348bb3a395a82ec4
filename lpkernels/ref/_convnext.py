"""What the references of the motion extractor's ops share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6  # of every norm in ConvNeXt V2


def wide(x: Tensor) -> torch.dtype:
    """The dtype a reference computes in: FP32, FP64 for FP64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def normalized(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without affine."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """conv2d without padding of channels-last (B, H, W, C) with (O, kh, kw, C): (B, H', W', O)."""
    planes = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, stride)
    return planes.permute(0, 2, 3, 1)
