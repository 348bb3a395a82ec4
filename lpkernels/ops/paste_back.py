"""paste_back: the animated face warped back into the whole source picture, feathered by a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Op, native, reference
from lpkernels.ref.paste_back import Box, invert, warp_affine

Matrix = Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[Any] | Tensor
"""An affine matrix: 2x3 or 3x3 (its last row 0, 0, 1), or the six numbers of a 2x3 row by row; not on a GPU."""

_SINGULAR = 1e-9  # determinant by the square of the largest entry
_MASK_DTYPES = (torch.uint8, torch.float32, torch.float64)


def warp_mask(mask: Tensor, M_c2o: Matrix, size: tuple[int, int]) -> tuple[Box, Tensor]:
    """A crop's mask warped into the picture: done once per source, as the original's ``prepare_paste_back``.

    Bilinear, zero outside the mask, kept in 255 steps as the original keeps it, and cut to the part of the picture
    where it is not zero. Waits for the device.

    Args:
        mask: (S, S) weights of the crop's pixels: uint8, 255 for the animated picture alone, or float32 or float64 in
            0..1; zero along its border, or the paste shows a seam there (``lpkernels.animate.crop.feathered_mask``).
        M_c2o: from the crop's pixels to the picture's, pixel centres at whole numbers.
        size: height and width of the picture in pixels.

    Returns:
        box: x, y, width and height of that part, in pixels of the picture.
        tile: (height, width) uint8, the warped mask there, on the device of ``mask``.

    Raises:
        TypeError: ``mask`` or ``M_c2o`` is nothing of that kind.
        ValueError: a wrong shape, values that are not finite or not in 0..1, a singular matrix, a size below 1, or no
            pixel of the picture lies under the mask.
    """
    _checks.shape("mask", _checks.is_tensor("mask", mask), ("S", "S"))
    _checks.dtype("mask", mask, _MASK_DTYPES)
    to_crop = invert(matrix := _affine("M_c2o", M_c2o))
    height, width = _picture_size(size)
    levels = mask.double()
    if mask.dtype != torch.uint8:
        if not bool(((mask >= 0) & (mask <= 1)).all()):  # NaN fails both
            raise ValueError("mask must have values in 0..1, got others or NaN")
        levels = levels * 255
    # A sample is zero from one pixel outside the mask on.
    rows, columns = mask.shape
    corners = [(u, v) for u in (-1, columns) for v in (-1, rows)]
    x, w = _extent([matrix[0] * u + matrix[1] * v + matrix[2] for u, v in corners], width)
    y, h = _extent([matrix[3] * u + matrix[4] * v + matrix[5] for u, v in corners], height)
    if w > 0 and h > 0:
        warped = warp_affine(levels[None, ..., None], to_crop, (x, y, w, h))[0, ..., 0].add_(0.5).to(torch.uint8)
        (left, top, w, h), tile = trim_mask(warped)
        if w > 0:
            return (x + left, y + top, w, h), tile
    raise ValueError(
        f"mask must cover a pixel of the picture, {height} rows and {width} columns: M_c2o puts it outside"
    )


def trim_mask(mask: Tensor) -> tuple[Box, Tensor]:
    """A mask (H, W) cut to where it is not zero: the box, and a dense copy of it; four zeros where there is nothing.

    Waits for the device; what it gives is there for every stream.
    """
    across, down = mask.amax(0).nonzero().flatten().tolist(), mask.amax(1).nonzero().flatten().tolist()
    x, y, right, bottom = (across[0], down[0], across[-1] + 1, down[-1] + 1) if across else (0, 0, 0, 0)
    tile = mask[y:bottom, x:right].clone(memory_format=torch.contiguous_format)
    if tile.is_cuda:
        torch.cuda.current_stream(tile.device).synchronize()
    return (x, y, right - x, bottom - y), tile


def _fake(*_: Any) -> None:
    return None


def _ref(
    image: Tensor, source: Tensor, mask: Tensor, matrix: list[float], box: list[int], copy_rest: bool, out: Tensor
) -> None:
    pasted = ref.paste_back(image, source, mask, matrix, (box[0], box[1], box[2], box[3]))
    if copy_rest:
        out.copy_(pasted)
        return
    x, y, width, height = box
    part = out[:, y : y + height, x : x + width]
    part.copy_(torch.where(mask[..., None] > 0, pasted[:, y : y + height, x : x + width], part))


_OP = Op(
    "paste_back(Tensor image, Tensor source, Tensor mask, float[] matrix, int[] box, bool copy_rest, Tensor(a!) out)"
    " -> ()",
    _fake,
    (native("paste_back", "cuda"), native("paste_back", "cpu"), reference(_ref)),
)


def paste_back(
    image: Tensor,
    source: Tensor,
    mask: Tensor,
    matrix: Matrix,
    box: Box,
    copy_rest: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """The animated picture in its place in the source picture (the original's ``paste_back``)::

        warped = round(bilinear(image, M_o2c (x, y, 1)))              zeros outside the image
        out    = floor((mask warped + (255 - mask) source) / 255)     where mask > 0; else the source

    The original blends every pixel of the picture in float32 on the CPU. Here only the mask's box is read; where
    ``out`` already holds the rest, nothing else is touched. Coordinates are exact (OpenCV's are multiples of 1/32 of a
    pixel) and the blend is made in whole numbers; where both matter the answers are a level apart.

    Args:
        image: (B, S, S, 3) uint8, RGB, S at least 2: the animated crop.
        source: (H, W, 3) for all, or (B, H, W, 3), uint8, on the device of ``image``.
        mask: (height, width) uint8, the tile that ``warp_mask`` gives.
        matrix: M_c2o, from the crop's pixels to the picture's, pixel centres at whole numbers.
        box: x, y, width, height of ``mask`` in the picture, as ``warp_mask`` gives it.
        copy_rest: copy the source to where the mask is zero or does not reach; False where ``out`` holds it already,
            as after an earlier paste with the same source, mask and box.
        out: (B, H, W, 3) uint8, contiguous: where to write, over none of the inputs, or the source itself. None: new.

    Returns:
        (B, H, W, 3) uint8, which is ``out``.

    Raises:
        TypeError: an argument is no tensor, has a wrong dtype, or is no matrix.
        ValueError: a shape does not fit, the matrix is singular or not finite, the box is empty or leaves the picture,
            devices differ, ``out`` overlaps an input, or there is neither ``out`` nor ``copy_rest``.
        BackendError: no allowed backend can run this call.
    """
    for name, tensor in (("image", image), ("source", source), ("mask", mask)):
        _checks.dtype(name, _checks.is_tensor(name, tensor), (torch.uint8,))
    _checks.shape("image", image, ("B", "S", "S", 3))
    batch = image.shape[0]
    if min(image.shape[1:3]) < 2:
        raise ValueError(f"image must have at least 2x2 pixels, got shape {tuple(image.shape)}")
    _checks.shape("source", source, ("H", "W", 3) if source.dim() == 3 else (batch, "H", "W", 3))
    _checks.shape("mask", mask, ("height", "width"))
    _checks.same_device("image", image, source=source, mask=mask)
    numbers, part = _affine("matrix", matrix), _inside(box, mask, source)
    shape = (batch, *source.shape[-3:])
    if out is None:
        if not copy_rest:
            raise ValueError("copy_rest=False needs an out that holds the source already, got None")
        out = image.new_empty(shape)
    else:
        _checks.dtype("out", _checks.is_tensor("out", out), (torch.uint8,))
        _checks.shape("out", out, shape)
        _checks.same_device("image", image, out=out)
        if not out.is_contiguous():
            raise ValueError(f"out must be contiguous, got strides {tuple(out.stride())} for {shape}")
        _conv.no_overlap("out", out, image=image, mask=mask, source=None if _is_source(out, source) else source)
    _OP(image.contiguous(), source.contiguous(), mask.contiguous(), numbers, part, bool(copy_rest), out)
    return out


def _affine(name: str, matrix: Matrix) -> list[float]:
    """The six numbers of an affine matrix that can be inverted."""
    if isinstance(matrix, Tensor) and matrix.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, for its values are checked; got {matrix.device}")
    rows = matrix.tolist() if isinstance(matrix, Tensor | np.ndarray) else matrix
    try:
        numbers = [float(x) for row in rows for x in (row if isinstance(row, list | tuple | np.ndarray) else (row,))]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a 2x3 or 3x3 matrix of numbers, got {type(matrix).__name__}") from None
    if len(numbers) == 9 and numbers[6:] == [0, 0, 1]:
        del numbers[6:]
    if len(numbers) != 6:
        raise ValueError(f"{name} must be 2x3, or 3x3 with the last row 0, 0, 1; got {len(numbers)} numbers")
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name} must be finite, got {numbers}")
    a, b, _, d, e, _ = numbers
    largest = max(abs(a), abs(b), abs(d), abs(e))
    if abs(a * e - b * d) <= _SINGULAR * largest * largest:
        raise ValueError(f"{name} is singular: it maps the crop onto a line or a point, got {numbers}")
    return numbers


def _picture_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = _checks.integers("size", size, "the picture's height", "width")
    if min(height, width) < 1:
        raise ValueError(f"size must be the picture's height and width, each at least 1, got {(height, width)}")
    return height, width


def _extent(values: list[float], size: int) -> tuple[int, int]:
    """First pixel and number of pixels of 0..size - 1 between the least and the largest of ``values``."""
    first = math.ceil(max(min(values), 0))
    return first, math.floor(min(max(values), size - 1)) + 1 - first


def _inside(box: Box, mask: Tensor, source: Tensor) -> list[int]:
    """The box as a list, checked against the mask and the picture."""
    x, y, width, height = _checks.integers("box", box, "x", "y", "width", "height")
    if (height, width) != tuple(mask.shape):
        raise ValueError(f"box must have the mask's width and height, {tuple(mask.shape)[::-1]}, got {tuple(box)}")
    rows, columns = source.shape[-3:-1]
    if x < 0 or y < 0 or x + width > columns or y + height > rows:
        raise ValueError(f"box must lie in the source, {columns}x{rows} (x, y, width, height), got {tuple(box)}")
    return [x, y, width, height]


def _is_source(out: Tensor, source: Tensor) -> bool:
    """Whether ``out`` is the source itself, every pixel in its place."""
    if torch.compiler.is_compiling():
        return False
    same = out.data_ptr() == source.data_ptr() and out.numel() == source.numel()
    return same and source.is_contiguous()
