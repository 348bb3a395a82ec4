"""instance_norm_stats in plain PyTorch: what InstanceNorm subtracts and multiplies by."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels.ref.conv_act import channel_stats


def instance_norm_stats(x: Tensor) -> Tensor:
    """Mean and 1 / sqrt(var + 1e-5) in FP32 (FP64 for FP64 inputs); see ``lpkernels.ops.instance_norm_stats``."""
    return channel_stats(x if x.dtype == torch.float64 else x.float())
