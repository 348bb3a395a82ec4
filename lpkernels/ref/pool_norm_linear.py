"""pool_norm_linear: the end of ConvNeXt, in FP32 (FP64 for FP64) whatever the activations are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lpkernels.ref._convnext import normalized, wide


def pool_norm_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mean over space, layer norm, linear; see ``lpkernels.ops.pool_norm_linear``."""
    compute = wide(x)
    pooled = x.to(compute).mean((1, 2))
    return F.linear(normalized(pooled), weight.to(compute), bias.to(compute))
