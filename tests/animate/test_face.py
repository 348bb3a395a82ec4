"""Faces found: where the drawn portraits' are, crops as the original makes them, and what there is to say otherwise."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpkernels.animate import _mtcnn, face, image
from lpkernels.animate._driving import open_driving
from lpkernels.animate.crop import crop_from_landmarks, crop_picture, transform_points
from lpkernels.animate.image import Frame, save_image
from lpkernels.animate.portrait import SOURCE_LOOK, draw_portrait, driving_frames
from lpkernels.errors import InputError
from tests.animate.clips import write_clip

HAS_EXTRA = all(importlib.util.find_spec(name) for name in ("mtcnn", "joblib", "lz4"))
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason="needs the extra: pip install 'lpkernels[face]'")
SIZE = 320


def eyes(picture: Frame) -> np.ndarray:
    """The middles of both irises by their colour, left first, (2, 2)."""
    at = np.abs(picture.astype(int) - SOURCE_LOOK.iris).max(2) < 12
    columns = np.arange(picture.shape[1])
    middle = columns[at.any(0)].mean()
    return np.array([[axis[at & side].mean() for axis in np.mgrid[: at.shape[0], : at.shape[1]][::-1]]
                     for side in (columns < middle, columns > middle)])  # fmt: skip


def framed(portrait: Frame, x: int, y: int, size: tuple[int, int]) -> Frame:
    """A portrait in a flat picture of (height, width)."""
    whole = np.full((*size, 3), (190, 200, 205), np.uint8)
    whole[y : y + portrait.shape[0], x : x + portrait.shape[1]] = portrait
    return whole


@needs_extra
@pytest.mark.parametrize("yaw", [-15, 0, 20])
def test_landmarks_lie_on_the_face(yaw: float) -> None:
    picture = draw_portrait(SIZE, yaw=yaw)
    (points,) = face.find_landmarks(picture)
    assert points.shape == (5, 2)
    assert np.abs(points[:2] - eyes(picture)).max() < 0.02 * SIZE
    left, right, nose, mouth_left, mouth_right = points
    assert left[1] < nose[1] < mouth_left[1]
    assert left[0] < right[0]
    assert mouth_left[0] < nose[0] + 4
    assert mouth_left[0] < mouth_right[0]
    assert np.array_equal(face.find_landmarks(torch.from_numpy(picture))[0], points)


@needs_extra
@pytest.mark.parametrize("angle", [-25, 0, 30])
def test_the_crop_is_upright_and_around_the_face(angle: float) -> None:
    portrait = np.array(Image.fromarray(draw_portrait(SIZE)).rotate(-angle, Image.Resampling.BILINEAR))
    picture = framed(portrait, 150, 90, (500, 640))
    crop = face.find_crops(picture, 128)[0]
    upright = crop_picture(picture, crop)
    left, right = eyes(upright)
    assert abs(math.degrees(math.atan2(right[1] - left[1], right[0] - left[0]))) < 6
    # The original's crops of upright faces have the eyes a little above the middle, a fifth to a quarter apart.
    assert (left + right)[0] / 2 == pytest.approx(64, abs=6)
    assert 48 < left[1] < 64
    assert 0.17 < (right[0] - left[0]) / 128 < 0.27


@needs_extra
def test_the_largest_of_several_faces_comes_first() -> None:
    picture = framed(draw_portrait(200), 20, 150, (440, 700))
    picture[60:380, 300:620] = draw_portrait(320)
    crops = face.find_crops(picture, 64)
    assert len(crops) == 2
    centres = [transform_points(np.array([[32.0, 32.0]]), crop.M_c2o)[0] for crop in crops]
    assert np.abs(centres[0] - [460, 210]).max() < 30
    assert np.abs(centres[1] - [120, 244]).max() < 20


@needs_extra
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (11, 40), (300, 400), (20, 900)])
def test_no_face(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert face.find_landmarks(picture) == []
    with pytest.raises(InputError, match=rf"no face was found in the picture, {shape[1]}x{shape[0]}; give a box"):
        face.find_crops(picture)


@needs_extra
def test_faces_at_the_border_do_not_end_it() -> None:
    picture = draw_portrait(SIZE)
    for cut in (picture[:, 110:], picture[90:], picture[:, :200]):
        for crop in map(face.face_crop, face.find_landmarks(cut)):
            assert np.isfinite(crop.M_o2c).all()


@pytest.mark.parametrize(
    "edges", [(-30, -40, -10, -20), (70, 3, 90, 23), (2, 70, 9, 77), (-9, -9, 80, 80), (3, 3, 3, 3)]
)
def test_candidates_outside_the_picture_are_grey(edges: tuple[float, ...]) -> None:
    pixels = torch.ones(1, 3, 50, 60)
    patch = _mtcnn._patches(pixels, torch.tensor([[*edges, 0.9]]), 24)
    assert patch.shape == (1, 3, 24, 24)
    left, top, right, bottom = edges
    covered = max(0, min(right, 60) - max(left, 0)) * max(0, min(bottom, 50) - max(top, 0))
    share = covered / ((right - left) * (bottom - top)) if right > left else 1.0
    assert float(patch.mean()) == pytest.approx(share, abs=0.02)


@needs_extra
def test_one_box_for_a_clip(tmp_path: Path) -> None:
    frames = [framed(frame, 200, 60, (400, 640)) for frame in driving_frames(6, 300)]
    box = face.find_driving_box(frames)
    assert box is not None
    x, _, width, height = box
    assert width == height
    assert abs(x + width / 2 - 350) < 25
    assert 180 < width < 330
    clip = write_clip(tmp_path / "clip.mp4", frames)
    driving = open_driving(clip, "auto")
    shapes = {frame.shape for frame in driving.frames()}
    assert len(shapes) == 1
    assert np.abs(np.array(driving.crop) - box).max() <= 8, "the encoder moves landmarks a little"
    assert shapes == {(driving.crop[3], driving.crop[2], 3)}
    assert face.find_driving_box([np.zeros((64, 64, 3), np.uint8)] * 2) is None


@needs_extra
def test_a_driving_file_without_a_face(tmp_path: Path) -> None:
    save_image(tmp_path / "flat.png", np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(InputError, match=r"no face was found in .*flat\.png"):
        open_driving(tmp_path / "flat.png", "auto")


def test_a_driving_crop_is_a_box_or_auto(tmp_path: Path) -> None:
    save_image(tmp_path / "flat.png", np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(InputError, match="'auto'; got 'face'"):
        open_driving(tmp_path / "flat.png", "face")


def test_five_landmarks_are_scaled_to_the_outline() -> None:
    """As the original crops an outline from the upper to the lower end of two landmarks."""
    five = np.array([[-14.0, -15], [14, -15], [0, 0], [-10, 15], [10, 15]]) + 200
    half = 30 * face._OUTLINE / 2  # the five are 30 high
    middle = 200 + 2 * half * face._LOWER
    outline = crop_from_landmarks([[200, middle - half], [200, middle + half]], 256)
    np.testing.assert_allclose(face.face_crop(five, 256).M_o2c, outline.M_o2c, atol=1e-9)


def test_a_box_may_leave_the_picture() -> None:
    picture = np.random.default_rng(0).integers(1, 256, (20, 30, 3), dtype=np.uint8)
    inside = image.crop_padded(picture, (4, 5, 6, 7))
    assert np.shares_memory(inside, picture)
    assert np.array_equal(inside, picture[5:12, 4:10])
    padded = image.crop_padded(picture, (-3, 15, 40, 10))
    assert padded.shape == (10, 40, 3)
    assert np.array_equal(padded[:5, 3:33], picture[15:])
    assert int(padded.sum()) == int(picture[15:].sum())
    for box in ((30, 0, 5, 5), (0, -5, 5, 5)):
        with pytest.raises(InputError, match="holds no pixel of the picture, which is 30x20"):
            image.crop_padded(picture, box)


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mtcnn" else find_spec(name))
    _mtcnn._weights.cache_clear()
    for call in (face.check_face_finder, lambda: face.find_crops(draw_portrait(64))):
        with pytest.raises(InputError, match=r"pip install 'lpkernels\[face\]'") as caught:
            call()
        assert "\n" not in str(caught.value)
