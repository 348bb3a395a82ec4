"""linear_gelu as PyTorch writes it, and the sums of squares that its GRN would take, in blocks of pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels.ref._convnext import wide


def row_block(pixels: int) -> int:
    """Pixels that a row of ``squares`` sums, for images of ``pixels``: as many as leave the kernel enough programs."""
    if pixels >= 2048:
        return 256
    if pixels >= 512:
        return 128
    return 64 if pixels > 32 else 32 if pixels > 16 else 16


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(x W^T + b) and its sums of squares in FP32 (FP64 for FP64); see ``lpkernels.ops.linear_gelu``."""
    return linear_gelu_in(wide(x), x, weight, bias)


def linear_gelu_in(compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The same in the dtype ``compute``; the sums are float32 at least."""
    h = F.gelu(F.linear(x.to(compute), weight.to(compute), bias.to(compute)))
    pixels = h.flatten(1, 2)
    block = row_block(pixels.shape[1])
    blocks = F.pad(pixels, (0, 0, 0, -pixels.shape[1] % block)).unflatten(1, (-1, block))
    return h, blocks.to(torch.promote_types(compute, torch.float32)).square().sum(2)
