"""Landmarks of a face: its square in the picture, and how far eyes and lips are open.

Points are (x, y) in pixels, x right and y down. Any detector will do: landmarks of the layouts in ``LAYOUTS`` are told
apart by their number. The arithmetic is the original's (src/utils/crop.py, src/utils/retargeting_utils.py), in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lpkernels import _checks
from lpkernels.errors import InputError

Array = npt.NDArray[np.float64]
Points = npt.NDArray[Any] | Tensor | list[Any] | tuple[Any, ...]

# Of each layout: the landmarks whose means are the eye on the left of the picture, the one on the right, and the lips.
LAYOUTS: dict[int, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    5: ((0,), (1,), (3, 4)),
    9: ((2, 3), (0, 1), (5, 6)),  # of animals
    68: ((36, 39), (42, 45), (48, 54)),
    101: ((39, 42, 45, 48), (51, 54, 57, 60), (75, 81)),
    106: ((33, 35, 39, 40), (87, 89, 93, 94), (52, 61)),
    203: ((0, 6, 12, 18), (24, 30, 36, 42), (48, 66)),
}
_COINCIDENT = 1e-3  # pixels between eyes and lips below which a face has no direction
_RATIO_EPSILON = 1e-6


class Square(NamedTuple):
    """A square in a picture: its centre (x, y) and side in pixels, its rotation in degrees (clockwise)."""

    centre: tuple[float, float]
    side: float
    angle: float


def face_square(
    landmarks: Points, *, scale: float = 1.5, vx_ratio: float = 0.0, vy_ratio: float = 0.0, use_lip: bool = True
) -> Square:
    """The square around a face along its own axes (the original's ``parse_rect_from_landmark``).

    Args:
        landmarks: (N, 2) in pixels, of a layout of ``LAYOUTS``, of more than 101 points that begin like its 101, or
            two: the middle of the eyes and of the lips (without ``use_lip`` the left and the right eye).
        scale: side of the square by the landmarks' extent.
        vx_ratio, vy_ratio: shift along the face's x and y axis, in sides; a negative ``vy_ratio`` shows more forehead.
        use_lip: the face's y axis goes from the eyes to the lips; otherwise its x axis goes from eye to eye.

    Raises:
        InputError: landmarks of another shape, not finite, or all at one point; a scale that is not positive, or a
            ratio that is not finite.
    """
    points = _points(landmarks)
    if not all(_checks.is_finite(value) for value in (scale, vx_ratio, vy_ratio)) or scale <= 0:
        raise InputError(f"scale must be positive and the ratios finite, got {scale!r}, {vx_ratio!r} and {vy_ratio!r}")
    if np.ptp(points, axis=0).max() == 0:
        raise InputError(f"landmarks must not all be the same point, got {len(points)} times {points[0].tolist()}")
    first, second = axis_points(points, use_lip)
    length = math.hypot(*(second - first))
    down = (second - first) / length if length > _COINCIDENT else np.array([0.0, 1.0])
    axes = np.stack([np.array([down[1], -down[0]]), down])  # the face's x and y, as rows
    mean = points.mean(0)
    along = (points - mean) @ axes.T
    low, high = along.min(0), along.max(0)
    side = scale * float((high - low).max())
    centre = mean + ((low + high) / 2 + side * np.array([vx_ratio, vy_ratio])) @ axes
    return Square((float(centre[0]), float(centre[1])), side, math.degrees(math.atan2(-down[0], down[1])))


def axis_points(landmarks: Points, use_lip: bool = True) -> Array:
    """Two points (2, 2) down the middle of a face (the original's ``parse_pt2_from_pt_x``).

    With ``use_lip`` the middle of the eyes and of the lips; otherwise the left eye and the right one turned about it by
    90 degrees clockwise. Arguments and errors as ``face_square``.
    """
    points = _points(landmarks)
    if len(points) == 2:
        first, second = points
    else:
        left, right, lips = (
            points[list(index)].mean(0) for index in LAYOUTS[len(points) if len(points) in LAYOUTS else 101]
        )
        first, second = ((left + right) / 2, lips) if use_lip else (left, right)
    if not use_lip:
        x, y = second - first
        second = first + np.array([-y, x])
    return np.stack([first, second])


def eye_ratios(landmarks: Points) -> tuple[float, float]:
    """How far the left and the right eye are open, height by width: ``MotionOptions.source_eye_ratio``.

    Args:
        landmarks: (203, 2), in any unit (the original's ``calc_eye_close_ratio``).

    Raises:
        InputError: landmarks of another shape, or not finite.
    """
    return _ratio(landmarks, (6, 18), (0, 12)), _ratio(landmarks, (30, 42), (24, 36))


def lip_ratio(landmarks: Points) -> float:
    """How far the lips are open, height by width: ``MotionOptions.source_lip_ratio``; arguments as ``eye_ratios``."""
    return _ratio(landmarks, (90, 102), (48, 66))


def _points(landmarks: Points, count: int | None = None) -> Array:
    try:
        values = landmarks.detach().cpu().numpy() if isinstance(landmarks, Tensor) else landmarks
        points = np.array(values)
        points = points.astype(np.float64, casting="unsafe" if points.dtype == object else "same_kind")
    except (TypeError, ValueError):
        raise InputError(f"landmarks must be an array of points (N, 2), got {type(landmarks).__name__}") from None
    number = points.shape[0] if points.ndim else 0
    known = number == count if count else _is_layout(number)
    if points.ndim != 2 or points.shape[1] != 2 or not known:
        counts = str(count) if count else f"2, {', '.join(map(str, LAYOUTS))}, or more than 101"
        raise InputError(f"landmarks must have shape (N, 2) with N = {counts}; got {points.shape}")
    if not np.isfinite(points).all():
        raise InputError("landmarks must be finite, got NaN or infinity")
    return points


def _is_layout(count: int) -> bool:
    return count == 2 or count in LAYOUTS or count > 101


def _ratio(landmarks: Points, height: tuple[int, int], width: tuple[int, int]) -> float:
    points = _points(landmarks, 203)

    def distance(pair: tuple[int, int]) -> float:
        return math.hypot(*(points[pair[0]] - points[pair[1]]))

    return distance(height) / (distance(width) + _RATIO_EPSILON)
