"""spade_blocks: residual blocks of SPADE, each convolution with the SPADE behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels.ref.conv_spade import conv_spade_in


def spade_blocks(
    x: Tensor,
    dx: Tensor,
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """y and the answer with all arithmetic in FP32 (FP64 for FP64 inputs); see ``lpkernels.ops.spade_blocks``."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return spade_blocks_in(compute, x, dx, actv, weight, bias, spade_weight, spade_bias, negative_slope)


def spade_blocks_in(
    compute: torch.dtype,
    x: Tensor,
    dx: Tensor,
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """The same with all arithmetic in the dtype ``compute``; y and dx go on in the dtype of ``x``."""
    dtype = x.dtype
    stacked = weight, bias, actv.chunk(weight.shape[0], dim=-1), spade_weight, spade_bias
    for step, own in enumerate(zip(*stacked, strict=True)):
        dx, y = conv_spade_in(compute, dx, *own, negative_slope, x if step % 2 else None)
        dx = dx.to(dtype)
        x = y if step % 2 else x
    return x, dx
