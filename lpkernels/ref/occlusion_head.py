"""occlusion_head as the original network writes it: depth folded into the channels, one conv 7x7, a sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels._channels_last import planes

KERNEL = 7


def occlusion_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The occlusion map, in FP32 (FP64 for FP64 inputs); see ``lpkernels.ops.occlusion_head``."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return occlusion_head_in(compute, x, weight, bias)


def occlusion_head_in(compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with the convolution in the dtype ``compute`` and the sigmoid at least in FP32; (B, H, W)."""
    taps = weight[: KERNEL * KERNEL].permute(2, 1, 0).reshape(1, -1, KERNEL, KERNEL)  # channel c * D + d, as published
    stacked = planes(x.to(compute)).flatten(1, 2)
    logits = F.conv2d(stacked, taps.to(compute), bias.to(compute), padding=KERNEL // 2)[:, 0]
    return torch.sigmoid(logits if compute == torch.float64 else logits.float())
