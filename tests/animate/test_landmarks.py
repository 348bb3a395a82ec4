"""Landmarks: every layout's axis and square, openings of eyes and lips, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels.animate import landmarks
from lpkernels.errors import InputError

LEFT, RIGHT, LIPS = np.array([35.0, 40]), np.array([75.0, 48]), np.array([50.0, 90])


def face(count: int) -> np.ndarray:
    """Landmarks whose eyes and lips have known middles, each point shifted so that only the right mean finds them."""
    points = np.random.default_rng(count).uniform(0, 120, (count, 2))
    for index, middle in zip(landmarks.LAYOUTS[count], (LEFT, RIGHT, LIPS), strict=True):
        shifts = np.random.default_rng(0).normal(size=(len(index), 2))
        points[list(index)] = middle + shifts - shifts.mean(0)
    return points


@pytest.mark.parametrize("count", landmarks.LAYOUTS)
def test_axis_of_every_layout(count: int) -> None:
    np.testing.assert_allclose(landmarks.axis_points(face(count)), [(LEFT + RIGHT) / 2, LIPS])
    # From eye to eye is (40, 8); turned clockwise, y down, that is (-8, 40).
    np.testing.assert_allclose(landmarks.axis_points(face(count), use_lip=False), [LEFT, LEFT + np.array([-8, 40])])


def test_the_originals_landmarks_of_each_layout() -> None:
    assert landmarks.LAYOUTS[203] == ((0, 6, 12, 18), (24, 30, 36, 42), (48, 66))
    assert sorted(landmarks.LAYOUTS) == [5, 9, 68, 101, 106, 203]


def test_axis_of_two_points_and_of_longer_layouts() -> None:
    np.testing.assert_array_equal(landmarks.axis_points([[1, 2], [3, 9]]), [[1, 2], [3, 9]])
    np.testing.assert_array_equal(landmarks.axis_points([[1, 2], [5, 2]], use_lip=False), [[1, 2], [1, 6]])
    longer = np.concatenate([face(101), np.full((20, 2), 1e4)])
    np.testing.assert_allclose(landmarks.axis_points(longer), landmarks.axis_points(face(101)))


def test_square_of_an_upright_face() -> None:
    points = [[40, 50], [80, 50], [60, 75], [45, 100], [75, 100]]  # 40 wide, 50 high, middle (60, 75)
    square = landmarks.face_square(points, scale=2.0)
    assert square.centre == pytest.approx((60, 75))
    assert square.side == pytest.approx(100)
    assert square.angle == pytest.approx(0)
    moved = landmarks.face_square(points, scale=2.0, vx_ratio=0.1, vy_ratio=-0.125)
    assert moved.centre == pytest.approx((70, 62.5))


@pytest.mark.parametrize("degrees", [0, 30, 90, 179, -45])
def test_square_turns_with_the_face(degrees: float) -> None:
    upright = np.array([[-20.0, -25], [20, -25], [0, 0], [-15, 25], [15, 25]])
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = upright @ np.array([[cosine, sine], [-sine, cosine]]) + [300, 200]
    square = landmarks.face_square(points, scale=1.0, vy_ratio=-0.1)
    assert square.angle == pytest.approx(degrees)
    assert square.side == pytest.approx(50)
    assert square.centre == pytest.approx((300 + 5 * sine, 200 - 5 * cosine))  # towards the forehead
    assert landmarks.face_square(points, use_lip=False).angle == pytest.approx(degrees)


def test_square_of_a_face_without_direction_is_upright() -> None:
    square = landmarks.face_square([[50, 50], [50, 50], [40, 60], [50, 50], [50, 50]])
    assert square.angle == 0


def test_openings_are_height_by_width() -> None:
    points = np.random.default_rng(0).normal(size=(203, 2))
    points[[6, 18, 0, 12]] = [[10, 8], [10, 12], [0, 10], [20, 10]]
    points[[30, 42, 24, 36]] = [[50, 7], [50, 13], [40, 10], [60, 10]]
    points[[90, 102, 48, 66]] = [[30, 40], [30, 45], [5, 42], [55, 42]]
    assert landmarks.eye_ratios(points) == pytest.approx((0.2, 0.3), rel=1e-6)
    assert landmarks.lip_ratio(torch.from_numpy(points)) == pytest.approx(0.1, rel=1e-6)
    assert math.isfinite(landmarks.lip_ratio(np.zeros((203, 2))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: landmarks.face_square(np.zeros((7, 2))), r"landmarks must have shape \(N, 2\) .* got \(7, 2\)"),
        (lambda: landmarks.face_square(np.zeros((68, 3))), r"got \(68, 3\)"),
        (lambda: landmarks.face_square(np.zeros((1, 68, 2))), r"got \(1, 68, 2\)"),
        (lambda: landmarks.face_square(3.0), r"got \(\)"),
        (lambda: landmarks.face_square([]), r"got \(0,\)"),
        (lambda: landmarks.face_square("face"), "landmarks must be an array of points"),
        (lambda: landmarks.face_square([[1, 2], [3]]), "landmarks must be an array of points"),
        (lambda: landmarks.face_square([[1, 2], [math.nan, 3]]), "landmarks must be finite"),
        (lambda: landmarks.face_square(np.full((68, 2), 7.0)), r"same point, got 68 times \[7.0, 7.0\]"),
        (lambda: landmarks.face_square(face(5), scale=0), "scale must be positive"),
        (lambda: landmarks.face_square(face(5), vx_ratio=math.nan), "ratios finite"),
        (lambda: landmarks.eye_ratios(face(106)), r"N = 203; got \(106, 2\)"),
        (lambda: landmarks.lip_ratio(np.full((203, 2), math.inf)), "landmarks must be finite"),
    ],
)
def test_bad_landmarks_are_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
