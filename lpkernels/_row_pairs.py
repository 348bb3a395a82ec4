"""How mask_conv3d's weight lies in memory where two rows of y share products (``rewrites.row_pair_kernels``).

A step is 64 channels of one tap along d or, first of all, the 16 that are left over of four taps and of three. It has
nine tiles of 64 by N columns. A tile of two kernels has 32 channels of each; the last tap's has all 64. Even steps
begin with the taps and end with the half sums, odd ones the other way round (csrc/hopper/row_pairs.h).
"""

from __future__ import annotations

import torch
from torch import Tensor

KERNELS, STEPS, STEP_CHANNELS, CHANNELS, TAPS = 9, 16, 64, 144, 7
_LEFT_OVER = 16
_FULL = CHANNELS - _LEFT_OVER
# Kernel and half of its 64 channels, two for each tile.
_HALF_SUMS = [(kernel, half) for pair in ((0, 1), (2, 3)) for half in (0, 1) for kernel in pair]
_TAPS = [(kernel, half) for pair in ((4, 5), (6, 7), (8,)) for half in (0, 1) for kernel in pair]
_ORDERS = [[2 * kernel + half for kernel, half in order] for order in (_TAPS + _HALF_SUMS, _HALF_SUMS + _TAPS)]


def tiles(kernels: Tensor) -> Tensor:
    """(N, 7 taps along d, 9 kernels, 144 channels) -> (N, 16, 9, 64)."""
    left_over = kernels.new_zeros(*kernels.shape[:1], TAPS + 1, KERNELS, _LEFT_OVER)
    left_over[:, :TAPS] = kernels[..., _FULL:]
    first = left_over.unflatten(1, (2, -1)).transpose(2, 3).flatten(3)
    full = kernels[..., :_FULL].unflatten(3, (2, -1)).transpose(2, 3).flatten(1, 2)
    halves = torch.cat([first, full], 1).reshape(-1, STEPS // 2, 2, 2 * KERNELS, STEP_CHANNELS // 2)
    ordered = [halves[:, :, odd, half] for odd, order in enumerate(_ORDERS) for half in order]
    return torch.stack(ordered, 2).reshape(-1, STEPS, KERNELS, STEP_CHANNELS)


def kernels(tiles: Tensor) -> Tensor:
    """What ``tiles`` was made of."""
    halves = tiles.reshape(-1, STEPS // 2, 2, 2 * KERNELS, STEP_CHANNELS // 2)
    ordered = [halves[:, :, odd, order.index(half)] for odd, order in enumerate(_ORDERS) for half in range(2 * KERNELS)]
    steps = torch.stack(ordered, 2).reshape(-1, STEPS, KERNELS, STEP_CHANNELS)
    left_over = steps[:, :2].unflatten(3, (-1, _LEFT_OVER)).transpose(2, 3).flatten(1, 2)[:, :TAPS]
    full = steps[:, 2:].unflatten(1, (TAPS, 2)).transpose(2, 3).flatten(3)
    return torch.cat([full, left_over], 3)


def is_tiles(weight: Tensor) -> bool:
    """Whether a weight (N, ., ., .) has that form; else it has taps, (N, 7, 7, C)."""
    return tuple(weight.shape[1:]) == (STEPS, KERNELS, STEP_CHANNELS)
