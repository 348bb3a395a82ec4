"""spade_conv as the original network writes it: gamma and beta convolved, x normalised, scaled, shifted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import rewrites
from lpkernels._channels_last import pixels, planes
from lpkernels.ref.conv_act import activation, convolved, kernel, whole_stats


def spade_conv(
    actv: Tensor, weight: Tensor, bias: Tensor, x: Tensor, stats: Tensor, negative_slope: float = 0.2
) -> Tensor:
    """SPADE and LeakyReLU on packed weights, in FP32 (FP64 for FP64 inputs); see ``lpkernels.ops.spade_conv``."""
    compute = torch.float64 if actv.dtype == torch.float64 else torch.float32
    return spade_conv_in(compute, actv, weight, bias, x, stats, negative_slope)


def spade_conv_in(
    compute: torch.dtype,
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    stats: Tensor,
    negative_slope: float = 0.2,
) -> Tensor:
    """The same with all arithmetic in the dtype ``compute``; (B, H, W, C)."""
    columns = convolved(planes(actv.to(compute)), kernel(weight.to(compute), actv), bias.to(compute))
    large = planes(x.to(compute))
    if large.shape[2:] != columns.shape[2:]:
        large = F.interpolate(large, scale_factor=2)
    mean, rstd = whole_stats(stats.to(compute))[..., None, None].unbind(2)
    y = (large - mean) * rstd
    if bias.shape[0] == x.shape[-1]:
        y = y * columns
    else:
        gamma, beta = rewrites.split_gamma_beta(columns, 1)
        y = y * gamma + beta
    return pixels(activation(y, negative_slope))
