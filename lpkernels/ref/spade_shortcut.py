"""spade_shortcut one layer after the other: gamma's SPADE, the 1x1 conv, and the conv that is its beta."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels.ref.conv_act import conv_act_in
from lpkernels.ref.spade_conv import spade_conv_in


def spade_shortcut(actv: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, x: Tensor, stats: Tensor) -> Tensor:
    """The shortcut on packed weights, in FP32 (FP64 for FP64 inputs); see ``lpkernels.ops.spade_shortcut``."""
    compute = torch.float64 if actv.dtype == torch.float64 else torch.float32
    return spade_shortcut_in(compute, actv, weight, bias, shortcut, x, stats)


def spade_shortcut_in(
    compute: torch.dtype, actv: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, x: Tensor, stats: Tensor
) -> Tensor:
    """The same with all arithmetic in the dtype ``compute``; (B, H, W, O)."""
    channels = [x.shape[-1], shortcut.shape[0]]
    phases = weight.unflatten(0, (-1, bias.shape[0]))
    gamma, beta = (rows.flatten(0, 1) for rows in phases.split(channels, 1))
    gamma_bias, beta_bias = bias.split(channels)
    modulated = spade_conv_in(compute, actv, gamma, gamma_bias, x, stats, 1.0)
    shift = conv_act_in(compute, actv, beta, beta_bias)
    return conv_act_in(compute, modulated, shortcut[:, None, None], torch.zeros_like(beta_bias), residual=shift)
