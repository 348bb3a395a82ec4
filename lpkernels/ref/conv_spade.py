"""conv_spade as the original network writes it: a convolution, instance norm of its answer, SPADE's scale and shift."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels.ref.conv_act import channel_stats, conv_act_in
from lpkernels.ref.spade_conv import spade_conv_in


def conv_spade(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    actv: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The answer, and y before the SPADE, in FP32 (FP64 for FP64 inputs); see ``lpkernels.ops.conv_spade``."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return conv_spade_in(compute, x, weight, bias, actv, spade_weight, spade_bias, negative_slope, residual)


def conv_spade_in(
    compute: torch.dtype,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    actv: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same with all arithmetic in the dtype ``compute``; y goes on in the dtype of ``x``."""
    y = conv_act_in(compute, x, weight, bias, residual=residual)
    stats = channel_stats(y if y.dtype == torch.float64 else y.float())
    y = y.to(x.dtype)
    return spade_conv_in(compute, actv, spade_weight, spade_bias, y, stats, negative_slope), y
