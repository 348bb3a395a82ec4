"""Crops: the square of a picture that the networks see, and what brings it back into the picture.

Points are (x, y) in pixels, x right and y down, pixel centres at whole numbers: pixel 0 covers -0.5 to 0.5. Angles are
degrees, clockwise as seen. The arithmetic is the original's (src/utils/crop.py), in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.animate.image import Box, Picture, check_box, check_frame
from lpkernels.animate.landmarks import Array, Points, Square, face_square
from lpkernels.errors import InputError


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of a picture as ``size`` x ``size`` pixels.

    Attributes:
        M_o2c: (3, 3) float64, from the picture's (original's) pixels to the crop's.
        M_c2o: its inverse, which ``ops.warp_mask`` and ``ops.paste_back`` take.
        size: side of the crop in its own pixels.

    Raises:
        InputError: a matrix that is not 3x3 and finite, or ``size`` below 1.
    """

    M_o2c: Array
    M_c2o: Array
    size: int

    def __post_init__(self) -> None:
        _size(self.size)
        for name in ("M_o2c", "M_c2o"):
            matrix = getattr(self, name)
            if not isinstance(matrix, np.ndarray) or matrix.shape != (3, 3) or not np.isfinite(matrix).all():
                raise InputError(f"crop's {name} must be a finite 3x3 array, got {_checks.shown(matrix)}")

    @property
    def corners(self) -> Array:
        """(4, 2): the crop's outer corners in the picture: upper left, upper right, lower right, lower left."""
        low, high = -0.5, self.size - 0.5
        return transform_points(np.array([[low, low], [high, low], [high, high], [low, high]]), self.M_c2o)

    @property
    def box(self) -> Box:
        """The least box of whole pixels that holds the crop; it may leave the picture."""
        cells = np.round(self.corners + 0.5, 6)  # edges that are meant to meet differ by an ulp
        x, y = (math.floor(value) for value in cells.min(0))
        right, bottom = (math.ceil(value) for value in cells.max(0))
        return x, y, right - x, bottom - y


def crop_from_landmarks(
    landmarks: Points,
    size: int = 512,
    *,
    scale: float = 2.3,
    vx_ratio: float = 0.0,
    vy_ratio: float = -0.125,
    rotate: bool = True,
    use_lip: bool = True,
) -> Crop:
    """The crop around a face, turned upright; the defaults are the original's for a source picture.

    For driving frames the original takes ``scale=2.2``, ``vy_ratio=-0.1``.

    Args:
        rotate: turn the crop by the face's angle; otherwise it stays parallel to the picture.
        landmarks, scale, vx_ratio, vy_ratio, use_lip: as ``face_square``.

    Raises:
        InputError: as ``face_square``, or ``size`` is below 1.
    """
    square = face_square(landmarks, scale=scale, vx_ratio=vx_ratio, vy_ratio=vy_ratio, use_lip=use_lip)
    return crop_from_square(square if rotate else square._replace(angle=0.0), size)


def crop_from_square(square: Square, size: int = 512) -> Crop:
    """The crop of a square: its centre at (size / 2, size / 2) of the crop, as the original has it.

    Raises:
        InputError: no such square, a number that is not finite, a side that is not positive, or ``size`` below 1.
    """
    try:
        (x, y), side, angle = square
    except (TypeError, ValueError):
        raise InputError(f"square must be a centre (x, y), side and angle, got {_checks.shown(square)}") from None
    if not all(_checks.is_finite(value) for value in (x, y, side, angle)) or side <= 0:
        raise InputError(f"a crop's square must have a finite centre and angle and a positive side, got {square}")
    factor, radians = _size(size) / side, math.radians(angle)
    cosine, sine = factor * math.cos(radians), factor * math.sin(radians)
    middle = size / 2
    return _crop([cosine, sine, middle - cosine * x - sine * y, -sine, cosine, middle + sine * x - cosine * y], size)


def crop_from_box(box: Box, size: int = 512) -> Crop:
    """The crop that ``Animator(crop=box)`` animates: a box squeezed into a square, edges on edges.

    Args:
        box: x, y, width, height in pixels; what is not square is distorted.

    Raises:
        InputError: no box of whole pixels, or ``size`` is below 1.
    """
    x, y, width, height = check_box(box)
    across, down = _size(size) / width, size / height
    return _crop([across, 0, across * (0.5 - x) - 0.5, 0, down, down * (0.5 - y) - 0.5], size)


def crop_picture(picture: Picture, crop: Crop) -> Picture:
    """The crop's pixels: uint8 (size, size, 3), bilinear at exact coordinates, rounded; black outside the picture.

    As the original's warp it does not smooth: of a face much larger than ``size`` it takes single pixels.

    Args:
        picture: uint8 (H, W, 3) RGB array, or tensor on any device.

    Returns:
        An array for an array, a tensor for a tensor.

    Raises:
        InputError: no part of the crop lies in the picture.
        TypeError, ValueError: no such picture.
    """
    check_frame("picture", picture)
    height, width = picture.shape[:2]
    edges = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
    if _apart(crop.corners, (width, height)) or _apart(transform_points(edges, crop.M_o2c), (crop.size, crop.size)):
        raise InputError(f"the crop lies outside the picture, which is {width}x{height}: its box is {crop.box}")
    tensor = (
        torch.from_numpy(np.require(picture, requirements=["C", "W"])) if isinstance(picture, np.ndarray) else picture
    )
    samples = ref.warp_affine(tensor[None], crop.M_c2o[:2].flatten().tolist(), (0, 0, crop.size, crop.size))[0]
    pixels = samples.add_(0.5).to(torch.uint8)
    cut: Picture = pixels.numpy() if isinstance(picture, np.ndarray) else pixels
    return cut


def transform_points(points: Points, matrix: Array) -> Array:
    """(N, 2) points through a 2x3 or 3x3 affine matrix."""
    return np.asarray(points, dtype=np.float64) @ matrix[:2, :2].T + matrix[:2, 2]


def feathered_mask(size: int = 512, feather: float = 1 / 32, radius: float = 1 / 16) -> Tensor:
    """The weights with which an animated crop is pasted back: a rounded square, 1 inside, 0 along its border.

    Across the ``feather`` the weight rises as 3 t^2 - 2 t^3, t the distance from the rounded outline by its width. The
    original's template has the same width, with a straight ramp.

    Args:
        size: side in pixels.
        feather: width of the falloff, in sides: above 0, at most 0.5.
        radius: radius of the outline's corners, in sides: 0 to 0.5.

    Returns:
        (size, size) float32 in 0..1.

    Raises:
        InputError: an argument out of range.
    """
    if not 0 < feather <= 0.5 or not 0 <= radius <= 0.5:
        raise InputError(f"feather must be in 0..0.5 and not 0, radius in 0..0.5; got {feather} and {radius}")
    half = (_size(size) - 1) / 2
    corner = min(radius * size, half)
    beyond = (torch.arange(size, dtype=torch.float64) - half).abs() - (half - corner)
    x, y = beyond[None, :], beyond[:, None]
    inside = corner - torch.hypot(x.clamp(min=0), y.clamp(min=0)) - torch.maximum(x, y).clamp(max=0)
    t = (inside / (feather * size)).clamp(0, 1)
    return (t * t * (3 - 2 * t)).float()


def _crop(M_o2c: list[float], size: int) -> Crop:
    matrix = np.array([*M_o2c, 0, 0, 1], dtype=np.float64).reshape(3, 3)
    return Crop(matrix, np.linalg.inv(matrix).astype(np.float64), size)


def _size(size: int) -> int:
    (whole,) = _checks.integers("size", (size,), "one number")
    if whole < 1:
        raise InputError(f"size must be at least 1 pixel, got {size}")
    return whole


def _apart(corners: Array, size: tuple[int, int]) -> bool:
    """Whether the box around ``corners`` has nothing in common with pixels 0..width - 1, 0..height - 1."""
    return bool((corners.max(0) <= -0.5).any() or (corners.min(0) >= np.array(size) - 0.5).any())
