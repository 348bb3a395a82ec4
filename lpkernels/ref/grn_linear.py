"""grn_linear as ConvNeXt V2 writes it: norms over space, divided by their mean, as a gain; linear; residual."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels.ref._convnext import EPSILON, wide


def grn_linear(x: Tensor, squares: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """GRN, linear and residual in FP32 (FP64 for FP64); see ``lpkernels.ops.grn_linear``."""
    return grn_linear_in(wide(x), x, squares, gamma, weight, bias, residual)


def grn_linear_in(
    compute: torch.dtype, x: Tensor, squares: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, residual: Tensor
) -> Tensor:
    """The same in the dtype ``compute``; norms and their mean are float32 at least."""
    scaled = x.to(compute) * grn_factors(squares, gamma)[:, None, None, :].to(compute)
    return F.linear(scaled, weight.to(compute), bias.to(compute)) + residual.to(compute)


def grn_factors(squares: Tensor, gamma: Tensor) -> Tensor:
    """What each channel of each image is multiplied by: (B, K)."""
    norms = squares.sum(1).sqrt()
    return 1 + gamma * (norms / (norms.mean(1, keepdim=True) + EPSILON))
