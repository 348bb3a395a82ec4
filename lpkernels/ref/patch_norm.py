"""patch_norm as ConvNeXt writes its stem: a conv whose stride is its size, layer norm over channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels.ref._convnext import EPSILON, conv, wide


def patch_norm(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """Patches, linear and layer norm in FP32 (FP64 for FP64 weights); see ``lpkernels.ops.patch_norm``."""
    return patch_norm_in(wide(weight), x, weight, bias, norm_weight, norm_bias)


def patch_norm_in(
    compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> Tensor:
    """The same in the dtype ``compute``."""
    x = x.to(compute) / 255 if x.dtype == torch.uint8 else x.to(compute)
    y = conv(x, weight.to(compute), bias.to(compute), stride=weight.shape[1])
    return F.layer_norm(y, y.shape[-1:], norm_weight.to(compute), norm_bias.to(compute), EPSILON)
