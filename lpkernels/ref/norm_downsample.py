"""norm_downsample as ConvNeXt writes it: layer norm over channels, conv 2x2 with stride 2."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels.ref._convnext import conv, normalized, wide


def norm_downsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm and conv in FP32 (FP64 for FP64); see ``lpkernels.ops.norm_downsample``."""
    return norm_downsample_in(wide(x), x, weight, bias)


def norm_downsample_in(compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in the dtype ``compute``."""
    return conv(normalized(x.to(compute)), weight.to(compute), bias.to(compute), stride=2)
