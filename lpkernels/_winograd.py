"""How a weight of three taps an axis lies in memory where two rows of y share products (``rewrites.winograd_kernels``).

A step is up to 64 channels of one tap along d; it has a group of products for every tap along w and 16 channels. There
are two arrangements (csrc/hopper/winograd.h), which their shapes tell apart:

- together, (O, T, 4, 16): a tile is a group's four kernels, taps before half sums.
- kind by kind, (O, T, 64): a tile is two groups' kernels of one kind, taps or half sums, and an odd last group half of
  one, zero in the rest. The last step begins with half sums and ends with taps, the one before it the other way round,
  and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS, STEP_CHANNELS, SLICE, KERNELS = 3, 64, 16, 4
_HALF_SUMS, _TAPS = slice(0, 2), slice(2, 4)  # of the kernels


def tiles(kernels: Tensor, together: bool) -> Tensor:
    """(O, [3 taps along d,] 4 kernels, 3 taps along w, C) -> (O, T, 4, 16) or (O, T, 64)."""
    volume = kernels if kernels.dim() == 5 else kernels[:, None]
    depth, channels = volume.shape[1], volume.shape[-1]
    if together:
        parts = [_groups(volume[:, d, :, :, piece]).roll(KERNELS // 2, -2) for d, piece in _steps(depth, channels)]
        return torch.cat(parts, 1)
    parts = []
    for d, kind, piece in _order(depth, channels):
        groups = _groups(volume[:, d, kind, :, piece]).flatten(1)
        parts.append(F.pad(groups, (0, -groups.shape[1] % STEP_CHANNELS)))
    return torch.cat(parts, 1).unflatten(1, (-1, STEP_CHANNELS))


def kernels(tiles: Tensor, channels: int, volume: bool) -> Tensor:
    """What ``tiles`` was made of."""
    depth = TAPS if volume else 1
    kernels = tiles.new_empty(tiles.shape[0], depth, KERNELS, TAPS, channels)
    at, rows = 0, tiles.flatten(1)
    if is_together(tiles.shape):
        for d, piece in _steps(depth, channels):
            size = KERNELS * TAPS * (piece.stop - piece.start)
            kernels[:, d, :, :, piece] = _of_groups(rows[:, at : at + size], KERNELS).roll(-KERNELS // 2, 1)
            at += size
    else:
        for d, kind, piece in _order(depth, channels):
            size = 2 * TAPS * (piece.stop - piece.start)
            kernels[:, d, kind, :, piece] = _of_groups(rows[:, at : at + size], 2)
            at += size + -size % STEP_CHANNELS
    return kernels if volume else kernels[:, 0]


def row(channels: int, depth: int, together: bool) -> tuple[int, ...]:
    """(T, 4, 16) or (T, 64) of a weight for ``channels``, a multiple of 16, of 1 or 3 taps along d."""
    if together:
        return depth * TAPS * channels // SLICE, KERNELS, SLICE
    full, rest = divmod(channels, STEP_CHANNELS)
    return 2 * depth * (full * _tiles(STEP_CHANNELS) + _tiles(rest)), STEP_CHANNELS


def is_tiles(shape: Sequence[int]) -> bool:
    """Whether a packed weight of that shape has one of these forms; else it has taps, (O, taps..., C)."""
    return len(shape) == 3 or is_together(shape)


def is_together(shape: Sequence[int]) -> bool:
    """Whether such a weight, or several stacked, has its products together: no op takes 4 taps along w."""
    return len(shape) > 3 and tuple(shape[-2:]) == (KERNELS, SLICE)


def _groups(kernels: Tensor) -> Tensor:
    """(O, kernels, 3 taps along w, C) -> (O, groups, kernels, 16)."""
    return kernels.unflatten(3, (-1, SLICE)).permute(0, 2, 3, 1, 4).flatten(1, 2)


def _of_groups(rows: Tensor, count: int) -> Tensor:
    """What ``_groups`` of ``count`` kernels was made of, from (O, all of it)."""
    return rows.reshape(rows.shape[0], TAPS, -1, count, SLICE).permute(0, 3, 1, 2, 4).flatten(3)


def _tiles(channels: int) -> int:
    """Tiles of a kind in a step."""
    return -(-TAPS * channels // SLICE // 2)


def _steps(depth: int, channels: int) -> list[tuple[int, slice]]:
    """Tap along d and channels of each step."""
    pieces = [slice(first, min(first + STEP_CHANNELS, channels)) for first in range(0, channels, STEP_CHANNELS)]
    return list(itertools.product(range(depth), pieces))


def _order(depth: int, channels: int) -> Iterator[tuple[int, slice, slice]]:
    """Tap along d, kind and channels in the order of their tiles, kind by kind."""
    steps = _steps(depth, channels)
    for left, (d, piece) in zip(range(len(steps), 0, -1), steps, strict=True):
        for kind in (_TAPS, _HALF_SUMS) if left % 2 == 0 else (_HALF_SUMS, _TAPS):
            yield d, kind, piece
