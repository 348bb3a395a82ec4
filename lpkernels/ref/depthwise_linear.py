"""depthwise_linear as ConvNeXt writes it, and the sums of squares that its GRN would take, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels.ref._convnext import normalized, wide

TILE_WIDTH = 8


def tile_height(height: int, width: int, channels: int) -> int:
    """Rows of the tiles of 8 columns that ``squares`` sums; ``csrc/convnext/depthwise_linear.cu`` has the same rule."""
    return 8 if height * width >= 2048 and channels <= 96 else 4


def tile_count(height: int, width: int, channels: int) -> int:
    """Tiles of an image, row by row: rows of ``squares``."""
    return -(-height // tile_height(height, width, channels)) * -(-width // TILE_WIDTH)


def depthwise_linear(x: Tensor, taps: Tensor, taps_bias: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """h and its sums of squares in FP32 (FP64 for FP64); see ``lpkernels.ops.depthwise_linear``."""
    return depthwise_linear_in(wide(x), x, taps, taps_bias, weight, bias)


def depthwise_linear_in(
    compute: torch.dtype, x: Tensor, taps: Tensor, taps_bias: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The same in the dtype ``compute``; the sums are float32 at least."""
    a = depthwise_norm_in(compute, x, taps, taps_bias)
    h = F.gelu(F.linear(a, weight.to(compute), bias.to(compute)))
    return h, sums_of_squares(h, tile_height(*x.shape[1:]))


def depthwise_norm_in(compute: torch.dtype, x: Tensor, taps: Tensor, taps_bias: Tensor) -> Tensor:
    """a, what the linear layer takes, in the dtype ``compute``."""
    kernels = taps.to(compute).permute(2, 0, 1).unsqueeze(1)
    planes = x.to(compute).permute(0, 3, 1, 2)
    v = F.conv2d(planes, kernels, taps_bias.to(compute), padding=taps.shape[0] // 2, groups=x.shape[3])
    return normalized(v.permute(0, 2, 3, 1))


def sums_of_squares(h: Tensor, rows: int) -> Tensor:
    """Sums over tiles of ``rows`` x 8 pixels of h (B, H, W, N): (B, tiles, N), float32 at least."""
    height, width = h.shape[1:3]
    padded = F.pad(h, (0, 0, 0, -width % TILE_WIDTH, 0, -height % rows))
    tiles = padded.unflatten(2, (-1, TILE_WIDTH)).unflatten(1, (-1, rows))
    return tiles.to(torch.promote_types(h.dtype, torch.float32)).square().sum((2, 4)).flatten(1, 2)
