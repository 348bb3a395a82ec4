"""depthwise_norm as ConvNeXt writes it: a grouped conv2d and a layer norm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels.ref._convnext import normalized, wide


def depthwise_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise conv and layer norm in FP32 (FP64 for FP64); see ``lpkernels.ops.depthwise_norm``."""
    return depthwise_norm_in(wide(x), x, weight, bias)


def depthwise_norm_in(compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in the dtype ``compute``."""
    taps = weight.to(compute).permute(2, 0, 1).unsqueeze(1)
    planes = x.to(compute).permute(0, 3, 1, 2)
    y = F.conv2d(planes, taps, bias.to(compute), padding=weight.shape[0] // 2, groups=x.shape[3])
    return normalized(y.permute(0, 2, 3, 1))
