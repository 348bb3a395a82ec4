"""The drawn portrait: a picture of the asked size in which every part of the pose shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lpkernels.animate.image import load_image
from lpkernels.animate.portrait import DRIVING_LOOK, draw_portrait, driving_frames, write_sample
from lpkernels.animate.video import VideoReader
from lpkernels.errors import InputError, LpkernelsError
from tests.animate.clips import streams

SIZE = 96
NEUTRAL = draw_portrait(SIZE)


def test_size_and_dtype() -> None:
    assert NEUTRAL.shape == (SIZE, SIZE, 3)
    assert NEUTRAL.dtype == np.uint8
    assert len(np.unique(NEUTRAL.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("size", [0, 15, 5000])
def test_impossible_size(size: int) -> None:
    with pytest.raises(InputError, match="size"):
        draw_portrait(size)


def changed_rows(**pose: float) -> np.ndarray:
    """Which rows, in picture heights, a pose changes."""
    difference = np.abs(draw_portrait(SIZE, **pose).astype(int) - NEUTRAL).max((1, 2))
    return np.flatnonzero(difference > 24) / SIZE


def test_eyes_and_mouth_move_alone() -> None:
    eyes, mouth = changed_rows(eyes=0.0), changed_rows(mouth=1.0)
    assert len(eyes) >= 3
    assert 0.35 < eyes.min() <= eyes.max() < 0.48
    assert mouth.max() > 0.6
    assert np.sum(mouth > 0.5) >= 8


@pytest.mark.parametrize("pose", [{"yaw": 25.0}, {"yaw": -25.0}, {"pitch": 10.0}, {"pitch": -10.0}, {"roll": 10.0}])
def test_the_head_turns(pose: dict[str, float]) -> None:
    difference = np.abs(draw_portrait(SIZE, **pose).astype(int) - NEUTRAL).mean()
    assert difference > 3
    assert np.array_equal(draw_portrait(SIZE, **pose)[-4:], NEUTRAL[-4:])  # the shoulders stay


def test_a_turn_carries_the_eyes_along() -> None:
    def eye_centre(yaw: float) -> float:
        open_eyes, closed = (draw_portrait(SIZE, yaw=yaw, eyes=eyes).astype(int) for eyes in (1.0, 0.0))
        weights = np.abs(open_eyes - closed).sum((0, 2))
        return float((weights * np.arange(SIZE)).sum() / weights.sum())

    assert eye_centre(-25) < eye_centre(0) - 3 < eye_centre(0) + 3 < eye_centre(25)


def test_openings_are_clamped() -> None:
    assert np.array_equal(draw_portrait(SIZE, eyes=2.0, mouth=-1.0), NEUTRAL)


def test_the_motion_is_plain_and_loops() -> None:
    frames = np.stack(list(driving_frames(24, SIZE))).astype(int)
    assert frames.shape == (24, SIZE, SIZE, 3)
    assert np.array_equal(frames[0], draw_portrait(SIZE, look=DRIVING_LOOK))
    change = np.abs(frames - frames[0]).mean((1, 2, 3))
    assert change[1:].min() > 0.5
    assert change[-1] < change.max() / 2


def test_sample(tmp_path: Path) -> None:
    source, driving = write_sample(tmp_path, frames=12, size=64, fps=12)
    assert load_image(source).shape == (64, 64, 3)
    with VideoReader(driving) as reader:
        assert (reader.size, reader.fps) == ((64, 64), 12)
        assert sum(1 for _ in reader) == 12
    codec, seconds = streams(driving)["audio"]
    assert codec == "aac"
    assert seconds == pytest.approx(1.0, abs=0.05)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["driving.mp4", "source.png"]


def test_a_sample_that_loops(tmp_path: Path) -> None:
    _, driving = write_sample(tmp_path, frames=5, size=64, loops=3)
    with VideoReader(driving) as reader:
        frames = [frame.astype(int) for frame in reader]
    assert len(frames) == 15
    again, other = np.abs(frames[6] - frames[1]).mean(), np.abs(frames[6] - frames[3]).mean()
    assert again < other / 2


def test_sample_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        write_sample(tmp_path, frames=0)
    with pytest.raises(InputError, match="loops"):
        write_sample(tmp_path, loops=0)
    with pytest.raises(LpkernelsError, match="does not exist"):
        write_sample(tmp_path / "missing")
