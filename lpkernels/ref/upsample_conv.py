"""upsample_conv on packed phases: one convolution on the small grid, whose phases are then picked apart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels._channels_last import pixels, planes
from lpkernels.ref.conv_act import activation
from lpkernels.rewrites import phases_of_products


def upsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    negative_slope: float = 1.0,
    classes: bool = False,
    scale: int | None = None,
) -> Tensor:
    """act(conv(nearest upsample of x) + bias); see ``lpkernels.ops.upsample_conv`` for shapes, phases and classes.

    In FP32 (FP64 for FP64 inputs).
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return upsample_conv_in(compute, x, weight, bias, negative_slope, classes, scale)


def upsample_conv_in(
    compute: torch.dtype,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    negative_slope: float = 1.0,
    classes: bool = False,
    scale: int | None = None,
) -> Tensor:
    """The same with all arithmetic in the dtype ``compute``."""
    if weight.dim() == x.dim() and scale is not None:
        weight = phases_of_products(weight.to(compute), scale)
    phases, outputs = weight.shape[:2]
    scale = {4: 2, 9: 4}[phases]
    convolve = F.conv3d if x.dim() == 5 else F.conv2d
    y = pixels(convolve(planes(x.to(compute)), planes(weight.to(compute).flatten(0, 1)), padding=1))
    *outer, height, width, _ = x.shape
    stored = (0, 1, 3) if classes else range(scale)  # of the large pixels of a small one, along an axis
    step = len(stored)
    large = y.new_empty(*outer, step * height, step * width, outputs)
    for i, row in enumerate(stored):
        for j, column in enumerate(stored):
            (row_phase, h), (column_phase, w) = phase_of(row, scale), phase_of(column, scale)
            first = (row_phase * (2 if scale == 2 else 3) + column_phase) * outputs
            picked = y[..., h : h + height, w : w + width, first : first + outputs]
            large[..., i::step, j::step, :] = picked
    return activation(large + bias.to(compute), negative_slope)


def phase_of(residue: int, scale: int) -> tuple[int, int]:
    """Phase of the large pixels scale * i + residue along an axis, and how far beyond i their answer lies."""
    phase = residue if scale == 2 else (residue + 1) // 2
    return phase, (residue + 1) // scale
