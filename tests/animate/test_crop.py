"""Crops: matrices both ways, boxes, the cut itself against float64, the mask, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from lpkernels import ops
from lpkernels.animate import crop, image
from lpkernels.animate.crop import Crop, Square
from lpkernels.errors import InputError
from lpkernels.models.pixels import resize_uint8

ANGLES = st.floats(-180, 180)


def picture(height: int, width: int, seed: int = 0) -> image.Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> image.Frame:
    """A picture of few levels from pixel to pixel, other in every colour."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([128 + 100 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], -1).astype(np.uint8)


def turned(points: np.ndarray, degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Points turned clockwise about the origin, scaled and shifted."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return scale * points @ np.array([[cosine, sine], [-sine, cosine]]) + np.array(shift)


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.floats(-900, 900), st.floats(-900, 900)), st.floats(1, 2000), ANGLES, st.integers(1, 600))
def test_a_square_becomes_the_crop(centre: tuple[float, float], side: float, angle: float, size: int) -> None:
    made = crop.crop_from_square(Square(centre, side, angle), size)
    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])  # upper left first, clockwise
    corners = turned(square - 0.5, angle, side, centre)
    np.testing.assert_allclose(crop.transform_points(corners, made.M_o2c), size * square, atol=1e-7 * size + 1e-9)
    np.testing.assert_allclose(made.M_o2c @ made.M_c2o, np.eye(3), atol=1e-7)
    points = np.array([[3.0, -4.0], [0.5, 7.0]])
    back = crop.transform_points(crop.transform_points(points, made.M_o2c), made.M_c2o)
    np.testing.assert_allclose(back, points, atol=1e-6)


def test_the_originals_matrix() -> None:
    """What the original's ``_estimate_similar_transform_from_pts`` gives for these landmarks (in float32)."""
    k = np.arange(203)
    landmarks = np.stack([300 + 80 * np.cos(0.7 * k) + 0.2 * k, 200 + 60 * np.sin(1.3 * k) - 0.3 * k], axis=1)
    original = [[-6.6533262e-01, 6.0249305e-01, 3.7205569e02], [-6.0249305e-01, -6.6533262e-01, 6.2330310e02]]
    np.testing.assert_allclose(crop.crop_from_landmarks(landmarks).M_o2c[:2], original, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(ANGLES, st.floats(0.2, 5), st.tuples(st.floats(-300, 300), st.floats(-300, 300)))
def test_a_crop_turns_with_its_face(degrees: float, scale: float, shift: tuple[float, float]) -> None:
    landmarks = np.array([[40.0, 50], [80, 52], [61, 75], [47, 95], [76, 93]])
    moved = turned(landmarks, degrees, scale, shift)
    upright, other = crop.crop_from_landmarks(landmarks, 256), crop.crop_from_landmarks(moved, 256)
    np.testing.assert_allclose(
        crop.transform_points(moved, other.M_o2c), crop.transform_points(landmarks, upright.M_o2c), atol=1e-6
    )


def test_without_rotation_the_crop_is_parallel_to_the_picture() -> None:
    landmarks = turned(np.array([[40.0, 50], [80, 50], [60, 75], [47, 95], [73, 95]]), 20)
    turning, parallel = (crop.crop_from_landmarks(landmarks, 256, rotate=rotate) for rotate in (True, False))
    assert turning.M_o2c[1, 0] < 0
    assert parallel.M_o2c[0, 1] == parallel.M_o2c[1, 0] == 0
    middle = np.array([[128.0, 128.0]])
    np.testing.assert_allclose(
        crop.transform_points(middle, parallel.M_c2o), crop.transform_points(middle, turning.M_c2o), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(parallel.M_o2c), np.linalg.det(turning.M_o2c))


@pytest.mark.parametrize("box", [(3, 5, 30, 20), (0, 0, 7, 9), (2, 1, 40, 40), (10, 0, 1, 3)])
def test_a_box_is_the_engines_own_crop(box: image.Box) -> None:
    whole = smooth(60, 50)
    made = crop.crop_from_box(box, 20)
    assert made.box == box
    squeezed = resize_uint8(torch.from_numpy(image.crop(whole, box).copy())[None], 20) * 255
    edge = math.ceil(10 / min(box[2:]))  # there the squeeze repeats the box's last pixel
    inner = (slice(edge, -edge),) * 2
    difference = crop.crop_picture(whole, made)[inner] - squeezed[0].permute(1, 2, 0).numpy()[inner]
    assert np.abs(difference).max(initial=0) <= 1
    x, y, width, height = box
    corners = [[x - 0.5, y - 0.5], [x + width - 0.5, y - 0.5]]
    np.testing.assert_allclose(made.corners[:2], corners, atol=1e-9)
    np.testing.assert_allclose(made.corners[2], [x + width - 0.5, y + height - 0.5], atol=1e-9)


def bilinear(pixels: image.Frame, made: Crop) -> np.ndarray:
    """The crop in float64 from a picture padded with black: an own reading of the definition."""
    ring = np.pad(pixels.astype(np.float64), ((2, 2), (2, 2), (0, 0)))
    y, x = np.mgrid[0 : made.size, 0 : made.size]
    at = crop.transform_points(np.stack([x.ravel(), y.ravel()], 1), made.M_c2o)
    at = np.clip(at, -1.5, np.array([pixels.shape[1], pixels.shape[0]]) + 0.5) + 2
    low = np.floor(at).astype(int)
    (u, v), (i, j) = (at - low).T[..., None], low.T
    upper = (1 - u) * ring[j, i] + u * ring[j, i + 1]
    lower = (1 - u) * ring[j + 1, i] + u * ring[j + 1, i + 1]
    return ((1 - v) * upper + v * lower).reshape(made.size, made.size, 3)


@pytest.mark.parametrize("square", [Square((30, 22), 25, 0), Square((5, 44), 70, 33), Square((31, 24), 8, -170)])
def test_the_cut_is_the_rounded_bilinear_sample(square: Square) -> None:
    pixels = picture(48, 61)
    made = crop.crop_from_square(square, 37)
    cut = crop.crop_picture(pixels, made)
    assert cut.shape == (37, 37, 3)
    assert np.abs(cut - bilinear(pixels, made)).max() <= 0.5 + 1e-9
    tensor = crop.crop_picture(torch.from_numpy(pixels), made)
    assert torch.equal(tensor, torch.from_numpy(cut))


def test_a_picture_comes_back_where_it_was() -> None:
    """Cut, paste back: the picture again, where crop and mask are fine enough."""
    pixels = smooth(90, 120)
    made = crop.crop_from_square(Square((52, 41), 50, 25), 128)
    box, tile = ops.warp_mask(crop.feathered_mask(128), made.M_c2o, pixels.shape[:2])
    cut = crop.crop_picture(torch.from_numpy(pixels), made)
    pasted = ops.paste_back(cut[None], torch.from_numpy(pixels), tile, made.M_c2o, box)[0].numpy()
    assert int(tile.max()) == 255
    assert np.abs(pasted.astype(int) - pixels).max() <= 3
    x, y, width, height = made.box
    assert x <= box[0] < box[0] + box[2] <= x + width
    assert y <= box[1] < box[1] + box[3] <= y + height


def test_box_is_the_least_that_holds_the_crop() -> None:
    made = crop.crop_from_square(Square((40, 30), 20, 45), 64)
    x, y, width, height = made.box
    low, high = made.corners.min(0) + 0.5, made.corners.max(0) + 0.5
    np.testing.assert_array_equal([x, y], np.floor(low))
    np.testing.assert_array_equal([x + width, y + height], np.ceil(high))


@pytest.mark.parametrize("size", [1, 2, 31, 512])
def test_mask_is_one_inside_and_nothing_at_the_border(size: int) -> None:
    mask = crop.feathered_mask(size)
    assert mask.shape == (size, size)
    assert float(mask.min()) >= 0
    assert all(bool((edge == 0).all()) for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert torch.equal(mask, mask.flip(0))
    assert torch.equal(mask, mask.T)
    if size > 3:
        row = mask[size // 2, : size // 2]
        assert bool((row.diff() >= 0).all())
        assert float(mask[size // 2, size // 2]) == 1


def test_masks_feather_and_corners_have_their_widths() -> None:
    mask = crop.feathered_mask(512, feather=1 / 32, radius=1 / 16)
    assert float(mask[256, 15]) < 1
    assert float(mask[256, 16]) == 1
    assert float(mask[256, 8]) == 0.5
    # The outline's corner is an arc around (32, 32): on the diagonal it starts 32 (1 - 1 / sqrt 2) = 9.4 pixels inside.
    assert float(mask[9, 9]) == 0
    assert float(mask[10, 10]) > 0
    assert float(crop.feathered_mask(512, radius=0)[1, 1]) > 0
    assert float(crop.feathered_mask(512, radius=0.5)[70, 70]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crop.crop_from_square(Square((0, 0), 0, 0)), "positive side"),
        (lambda: crop.crop_from_square(Square((0, math.nan), 1, 0)), "finite centre"),
        (lambda: crop.crop_from_square(Square((0, 0), 1, math.inf)), "finite centre and angle"),
        (lambda: crop.crop_from_square(Square((0, 0), 1, 0), 0), "size must be at least 1 pixel, got 0"),
        (lambda: crop.crop_from_box((1, 2, 0, 4)), "crop 1,2,0,4 is empty"),
        (lambda: crop.crop_from_box((1, 2, 3, 4), -1), "size must be at least 1 pixel"),
        (lambda: crop.crop_from_landmarks(np.zeros((5, 2))), "must not all be the same point"),
        (lambda: crop.crop_picture(picture(9, 9), crop.crop_from_box((20, 2, 5, 5))), "outside the picture, .* 9x9"),
        (lambda: crop.crop_picture(picture(9, 9), crop.crop_from_box((-5, 2, 5, 5))), "outside the picture"),
        (lambda: crop.crop_picture(picture(9, 9), crop.crop_from_square(Square((14, 14), 12, 45))), "outside"),
        (lambda: crop.feathered_mask(0), "size must be at least 1"),
        (lambda: crop.feathered_mask(8, feather=0), "feather must be"),
        (lambda: crop.feathered_mask(8, feather=math.nan), "feather must be"),
        (lambda: crop.feathered_mask(8, radius=0.6), "radius in 0..0.5"),
    ],
)
def test_what_is_wrong_is_named(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_only_pictures_are_cut() -> None:
    made = crop.crop_from_box((0, 0, 4, 4), 4)
    with pytest.raises(TypeError, match="picture must have dtype uint8"):
        crop.crop_picture(np.zeros((4, 4, 3)), made)
    with pytest.raises(ValueError, match="picture must have shape"):
        crop.crop_picture(np.zeros((4, 4), dtype=np.uint8), made)
