"""How a weight of three taps an axis lies in memory where two rows of y share products (``rewrites.winograd_kernels``).

A step is up to 64 channels of one tap along d. It has products of two kinds, taps and half sums: the last step begins
with half sums and ends with taps, the one before it the other way round, and so on. Of each kind there is a group for
every tap along w and 16 channels, those of its two kernels; two groups make a tile of 64, and an odd last group half of
one, zero in the rest (csrc/hopper/winograd.h).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS, STEP_CHANNELS, SLICE = 3, 64, 16
_HALF_SUMS, _TAPS = slice(0, 2), slice(2, 4)  # of the kernels


def tiles(kernels: Tensor) -> Tensor:
    """(O, [3 taps along d,] 4 kernels, 3 taps along w, C) -> (O, T, 64)."""
    volume = kernels if kernels.dim() == 5 else kernels[:, None]
    depth, channels = volume.shape[1], volume.shape[-1]
    parts = []
    for d, kind, piece in _order(depth, channels):
        groups = volume[:, d, kind, :, piece].unflatten(3, (-1, SLICE)).permute(0, 2, 3, 1, 4).flatten(1)
        parts.append(F.pad(groups, (0, -groups.shape[1] % STEP_CHANNELS)))
    return torch.cat(parts, 1).unflatten(1, (-1, STEP_CHANNELS))


def kernels(tiles: Tensor, channels: int, volume: bool) -> Tensor:
    """What ``tiles`` was made of."""
    depth = TAPS if volume else 1
    kernels = tiles.new_empty(tiles.shape[0], depth, 4, TAPS, channels)
    at, rows = 0, tiles.flatten(1)
    for d, kind, piece in _order(depth, channels):
        size = 2 * TAPS * (piece.stop - piece.start)
        groups = rows[:, at : at + size].reshape(-1, TAPS, size // (2 * TAPS * SLICE), 2, SLICE)
        kernels[:, d, kind, :, piece] = groups.permute(0, 3, 1, 2, 4).flatten(3)
        at += size + -size % STEP_CHANNELS
    return kernels if volume else kernels[:, 0]


def count(channels: int, depth: int) -> int:
    """T: the tiles of a weight for ``channels``, a multiple of 16, of 1 or 3 taps along d."""
    full, rest = divmod(channels, STEP_CHANNELS)
    return 2 * depth * (full * _tiles(STEP_CHANNELS) + _tiles(rest))


def is_tiles(weight: Tensor) -> bool:
    """Whether a packed weight has that form; else it has taps, (O, taps..., C)."""
    return weight.dim() == 3


def _tiles(channels: int) -> int:
    """Tiles of a kind in a step."""
    return -(-TAPS * channels // SLICE // 2)


def _order(depth: int, channels: int) -> Iterator[tuple[int, slice, slice]]:
    """Tap along d, kind and channels in the order of their tiles."""
    pieces = [slice(first, min(first + STEP_CHANNELS, channels)) for first in range(0, channels, STEP_CHANNELS)]
    steps = list(itertools.product(range(depth), pieces))
    for left, (d, piece) in zip(range(len(steps), 0, -1), steps, strict=True):
        for kind in (_TAPS, _HALF_SUMS) if left % 2 == 0 else (_HALF_SUMS, _TAPS):
            yield d, kind, piece
