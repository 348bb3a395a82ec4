"""paste_back in float64: bilinear samples at exact coordinates, rounded, then blended in whole levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 18  # samples taken at once: float64 of a large picture would fill the memory

Box = tuple[int, int, int, int]
"""Part of a picture in pixels: x and y of its upper left corner, width, height."""


def paste_back(image: Tensor, source: Tensor, mask: Tensor, matrix: Sequence[float], box: Box) -> Tensor:
    """The pasted pictures, uint8 (B, H, W, 3), all of them new; see ``lpkernels.ops.paste_back`` for the arguments.

    The original's arithmetic with exact coordinates: the warp is rounded to whole levels, the blend cut down to them.
    """
    x, y, width, height = box
    out = source.expand(image.shape[0], *source.shape[-3:]).clone()
    part = out[:, y : y + height, x : x + width]
    warped = warp_affine(image, invert(matrix), box).add_(0.5).floor_().long()
    weight = mask[..., None].long()
    part.copy_((weight * warped + (255 - weight) * part.long()) // 255)
    return out


def warp_affine(images: Tensor, to_image: Sequence[float], box: Box) -> Tensor:
    """Bilinear samples of pictures, with zeros around them, at an affine image of a box of whole pixels.

    Args:
        images: (B, h, w, C), any dtype and device; pixel centres at whole numbers.
        to_image: 2x3, six numbers: from (x, y) of a pixel of ``box`` to (x, y) in ``images``.

    Returns:
        (B, height, width, C), float64.
    """
    x, y, width, height = box
    a, b, c, d, e, f = to_image
    out = torch.empty(images.shape[0], height, width, images.shape[3], dtype=torch.float64, device=images.device)
    columns = torch.arange(x, x + width, dtype=torch.float64, device=images.device)
    step = max(1, _CHUNK // (width * images.shape[0]))
    for first in range(0, height, step):
        rows = torch.arange(y + first, y + min(first + step, height), dtype=torch.float64, device=images.device)[
            :, None
        ]
        out[:, first : first + step] = _bilinear(images, a * columns + b * rows + c, d * columns + e * rows + f)
    return out


def invert(matrix: Sequence[float]) -> tuple[float, ...]:
    """The inverse of an affine 2x3 matrix, six numbers row by row."""
    a, b, c, d, e, f = matrix
    determinant = a * e - b * d
    return (
        e / determinant,
        -b / determinant,
        (b * f - e * c) / determinant,
        -d / determinant,
        a / determinant,
        (d * c - a * f) / determinant,
    )


def _bilinear(images: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Samples at columns u and rows v, each (h, w) float64."""
    height, width = images.shape[1:3]
    pixels = images.flatten(1, 2)
    left, top = u.floor(), v.floor()
    total = torch.zeros(images.shape[0], *u.shape, images.shape[3], dtype=torch.float64, device=images.device)
    for down in (0, 1):
        for right in (0, 1):
            column, row = left + right, top + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (u - column).abs()) * (1 - (v - row).abs())
            at = row.clamp(0, height - 1).mul_(width).add_(column.clamp(0, width - 1)).long()
            total += pixels.index_select(1, at.flatten()).view_as(total) * torch.where(inside, weight, 0.0)[..., None]
    return total
