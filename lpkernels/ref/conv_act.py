"""conv_act as the original networks write it: convolution, residual, activation, gain; FP32 (FP64 for FP64 inputs)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import _winograd, rewrites
from lpkernels._channels_last import pixels, planes
from lpkernels.ref._classes import PHASES, conv_from_classes

EPS = 1e-5  # of InstanceNorm


def conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    negative_slope: float = 1.0,
    residual: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """act(conv(x, weight) + bias + residual) * gain; see ``lpkernels.ops.conv_act`` for shapes."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return conv_act_in(compute, x, weight, bias, negative_slope, residual, gain)


def conv_act_in(
    compute: torch.dtype,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    negative_slope: float = 1.0,
    residual: Tensor | None = None,
    gain: Tensor | None = None,
) -> Tensor:
    """The same with all arithmetic in the dtype ``compute``."""
    y = convolved(planes(x.to(compute)), kernel(weight.to(compute), x), bias.to(compute))
    if residual is not None:
        skip = planes(residual.to(compute))
        y = y + (skip if skip.shape == y.shape else F.interpolate(skip, scale_factor=2))
    y = pixels(activation(y, negative_slope))
    return y if gain is None else y * gain.to(compute)[..., None]


def kernel(weight: Tensor, x: Tensor) -> Tensor:
    """A packed weight of any form as PyTorch takes it, (O, C, taps...), for channels-last ``x``."""
    if _winograd.is_tiles(weight.shape):
        weight = rewrites.taps_of_winograd(_winograd.kernels(weight, x.shape[-1], volume=x.dim() == 5), -3)
    return planes(weight)


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The convolution that keeps the size; of an image's classes, if the weight has 16 kernels for each bias."""
    if weight.shape[0] == PHASES**2 * bias.shape[0]:
        return conv_from_classes(x, weight) + bias[:, None, None]
    convolve = F.conv3d if x.dim() == 5 else F.conv2d
    return convolve(x, weight, bias, padding=tuple(taps // 2 for taps in weight.shape[2:]))


def activation(v: Tensor, negative_slope: float) -> Tensor:
    """LeakyReLU; a slope of 1 is none, 0 is ReLU."""
    if negative_slope == 1.0:
        return v
    return F.relu(v) if negative_slope == 0.0 else F.leaky_relu(v, negative_slope)


def channel_parts(y: Tensor, parts: int) -> Tensor:
    """Mean and biased variance over each of ``parts`` equal runs of pixels, (B, ..., O) -> (B, parts, O, 2)."""
    var, mean = torch.var_mean(y.flatten(1, -2).unflatten(1, (parts, -1)), dim=2, correction=0)
    return torch.stack([mean, var], dim=-1)


def whole_stats(stats: Tensor) -> Tensor:
    """Statistics in parts (B, parts, O, 2) as ``channel_stats`` has them, (B, O, 2), which stay as they are."""
    if stats.dim() == 3:
        return stats
    means, variances = stats.unbind(-1)
    mean = means.mean(1)
    var = variances.mean(1) + (means - mean[:, None]).square().mean(1)
    return torch.stack([mean, torch.rsqrt(var + EPS)], dim=-1)


def stats_like(stats: Tensor, y: Tensor) -> Tensor:
    """The statistics of ``y`` in the form of ``stats``."""
    return channel_stats(y) if stats.dim() == 3 else channel_parts(y, stats.shape[1])


def channel_stats(y: Tensor) -> Tensor:
    """Mean and 1 / sqrt(var + 1e-5) of every channel over all pixels, (B, ..., O) -> (B, O, 2); biased variance."""
    var, mean = torch.var_mean(y.flatten(1, -2), dim=1, correction=0)
    return torch.stack([mean, torch.rsqrt(var + EPS)], dim=-1)
