"""conv_pool as the original hourglass writes it: conv3d, ReLU, average pool, in FP32 (FP64 for FP64 inputs)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels._channels_last import pixels, planes
from lpkernels.ref.conv_act import kernel


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """avg_pool(relu(conv(x, weight) + bias), (1, 2, 2)); see ``lpkernels.ops.conv_pool`` for shapes."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return conv_pool_in(compute, x, weight, bias)


def conv_pool_in(compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same with all arithmetic in the dtype ``compute``."""
    y = F.conv3d(planes(x.to(compute)), kernel(weight.to(compute), x), bias.to(compute), padding=1)
    return pixels(F.avg_pool3d(F.relu(y), (1, 2, 2)))
