"""Whole files: frames, rate and sound of the result, every kind of driving, and nothing half after a failure."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lpkernels.animate._driving import Driving, open_driving
from lpkernels.animate.animator import Animator
from lpkernels.animate.extract import extract_template
from lpkernels.animate.image import load_image, save_image
from lpkernels.animate.motion import Motion
from lpkernels.animate.pipeline import Result, animate_file
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.template import MotionTemplate, load_template, save_template
from lpkernels.animate.video import VideoReader
from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.animate.clips import streams, write_clip, write_tone

COUNT = 6
SIDE = 64
CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
Animate = Callable[..., Result]


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source.png, and driving.mp4 with a tone; tests read it only."""
    folder = tmp_path_factory.mktemp("inputs")
    save_image(folder / "source.png", draw_portrait(64))
    tone = write_tone(folder / "tone.wav", 1.0)
    write_clip(folder / "driving.mp4", list(driving_frames(COUNT, 48)), Fraction(24000, 1001), tone)
    return folder


@pytest.fixture
def animate(model: LivePortrait, inputs: Path, tmp_path: Path) -> Animate:
    """``animate_file`` on the inputs, into tmp_path/out.mp4 unless told otherwise."""

    def call(driving: str | Path = inputs / "driving.mp4", output: str = "out.mp4", **options: object) -> Result:
        source = options.pop("source", inputs / "source.png")
        return animate_file(model, source, driving, tmp_path / output, **options)  # type: ignore[arg-type]

    return call


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.stack(list(reader)).astype(int)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_video(animate: Animate, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    result = animate(progress=lambda done, total: calls.append((done, total)))
    assert result.frames == COUNT
    assert result.fps == pytest.approx(24000 / 1001)
    assert result.seconds > 0
    assert result.output == tmp_path / "out.mp4"
    assert calls == [(done, COUNT) for done in range(1, COUNT + 1)]
    with VideoReader(result.output) as reader:
        assert (reader.size, reader.fps, reader.frame_count) == ((SIDE, SIDE), Fraction(24000, 1001), COUNT)
    frames = frames_of(result.output)
    assert len(frames) == COUNT
    assert np.abs(frames[2] - frames[5]).mean() > 1  # the head turned to the one side and to the other
    assert streams(result.output)["audio"] == ("aac", pytest.approx(COUNT * 1001 / 24000, abs=0.03))
    assert names(tmp_path) == ["out.mp4"]


def test_without_sound(animate: Animate) -> None:
    assert set(streams(animate(audio=False).output)) == {"video"}


def test_side_by_side(animate: Animate, inputs: Path, tmp_path: Path) -> None:
    result = animate(side_by_side=tmp_path / "side.mp4")
    assert result.side_by_side == tmp_path / "side.mp4"
    assert set(streams(tmp_path / "side.mp4")) == {"video", "audio"}
    row, alone = frames_of(tmp_path / "side.mp4"), frames_of(result.output)
    assert row.shape == (COUNT, SIDE, 3 * SIDE, 3)
    assert np.abs(row[:, :, SIDE : 2 * SIDE] - load_image(inputs / "source.png")).mean() < 4
    assert np.abs(row[:, :, 2 * SIDE :] - alone).mean() < 12
    driving = np.stack(list(driving_frames(COUNT, SIDE))).astype(int)
    assert np.abs(row[:, :, :SIDE] - driving).mean() < 8


def test_side_by_side_keeps_aspect(animate: Animate, inputs: Path, tmp_path: Path) -> None:
    wide = [np.pad(frame, ((0, 0), (0, 48), (0, 0))) for frame in driving_frames(2, 48)]
    write_clip(tmp_path / "wide.mp4", wide)
    animate(tmp_path / "wide.mp4", side_by_side=tmp_path / "side.mp4")
    with VideoReader(tmp_path / "side.mp4") as reader:
        assert reader.size == (4 * SIDE, SIDE)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The animator reads two frames ahead, as on a GPU; the answer's last item is how many pictures were read."""
    overlapped = Animator._overlapped
    read = [0]

    def counted(items: Iterable[object]) -> Iterator[object]:
        for item in items:
            read[0] += 1
            yield item

    def patched(self: Animator, items: Iterable[Any], start: Any, ahead: int | None) -> Iterator[Any]:
        return overlapped(self, counted(items), start, 2)

    monkeypatch.setattr(Animator, "_overlapped", patched)
    return read


def test_reading_ahead_changes_nothing(animate: Animate, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def written(name: str) -> tuple[np.ndarray, np.ndarray, MotionTemplate]:
        side, template = tmp_path / f"{name}_side.mp4", tmp_path / f"{name}.safetensors"
        done: list[int] = []
        result = animate(
            output=f"{name}.mp4",
            side_by_side=side,
            save_template=template,
            progress=lambda count, total: done.append(count),
        )
        assert done == list(range(1, COUNT + 1))
        return frames_of(result.output), frames_of(side), load_template(template)

    alone, side, motion = written("in_turn")
    request.getfixturevalue("ahead")
    alone_ahead, side_ahead, motion_ahead = written("ahead")
    assert np.array_equal(alone, alone_ahead)
    assert np.array_equal(side, side_ahead)
    assert torch.equal(motion.exp, motion_ahead.exp)
    again = animate(tmp_path / "ahead.safetensors", "again.mp4")
    assert np.abs(frames_of(again.output) - alone).max() <= 4


def test_few_pictures_are_read_ahead(animate: Animate, tmp_path: Path, ahead: list[int]) -> None:
    def progress(done: int, total: int | None) -> None:
        assert ahead[0] - done <= 2

    animate(side_by_side=tmp_path / "side.mp4", progress=progress)
    assert ahead == [COUNT]


def test_frames_before_the_damage_are_animated_though_it_is_met_ahead(
    animate: Animate, inputs: Path, monkeypatch: pytest.MonkeyPatch, ahead: list[int]
) -> None:
    def damaged(self: Driving) -> Iterator[np.ndarray]:
        yield from driving_frames(4, 48)
        raise InputError("damaged after frame 4")

    opened = open_driving(inputs / "driving.mp4")
    monkeypatch.setattr("lpkernels.animate.pipeline.open_driving", lambda path, box: opened)
    monkeypatch.setattr(Driving, "frames", damaged)
    calls: list[int] = []
    with pytest.raises(InputError, match="after frame 4"):
        animate(progress=lambda done, total: calls.append(done))
    assert calls == [1, 2, 3, 4]


@pytest.mark.parametrize("side", [False, True])
def test_template(animate: Animate, model: LivePortrait, tmp_path: Path, side: bool) -> None:
    template = extract_template(model, driving_frames(COUNT, 48), 12.5)
    save_template(tmp_path / "motion.safetensors", template)
    extra = {"side_by_side": tmp_path / "side.mp4"} if side else {}
    result = animate(tmp_path / "motion.safetensors", **extra)
    assert (result.frames, result.fps) == (COUNT, 12.5)
    assert len(frames_of(result.output)) == COUNT
    if side:
        assert frames_of(tmp_path / "side.mp4").shape[1:3] == (SIDE, 2 * SIDE)


def test_saved_template_gives_the_same_video(animate: Animate, tmp_path: Path) -> None:
    first = animate(save_template=tmp_path / "motion.safetensors")
    assert first.template == tmp_path / "motion.safetensors"
    template = load_template(tmp_path / "motion.safetensors")
    assert (template.n_frames, template.fps) == (COUNT, pytest.approx(24000 / 1001))
    second = animate(tmp_path / "motion.safetensors", "again.mp4")
    assert np.abs(frames_of(first.output) - frames_of(second.output)).max() <= 4


def test_smoothing_reads_twice(animate: Animate, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    result = animate(
        smooth=True,
        side_by_side=tmp_path / "side.mp4",
        save_template=tmp_path / "motion.safetensors",
        progress=lambda done, total: calls.append((done, total)),
    )
    assert result.frames == COUNT
    assert calls == [(done, 2 * COUNT) for done in range(1, 2 * COUNT + 1)]
    assert frames_of(tmp_path / "side.mp4").shape == (COUNT, SIDE, 3 * SIDE, 3)
    # The template is kept as it was before smoothing: smoothed again, it gives the same video.
    again = animate(tmp_path / "motion.safetensors", "again.mp4", smooth=True)
    assert np.abs(frames_of(result.output) - frames_of(again.output)).max() <= 4


def test_crops(animate: Animate, inputs: Path, tmp_path: Path) -> None:
    framed = np.zeros((80, 96, 3), np.uint8)
    framed[10:74, 20:84] = load_image(inputs / "source.png")
    save_image(tmp_path / "framed.png", framed)
    plain = animate()
    cropped = animate(output="cropped.mp4", source=tmp_path / "framed.png", crop=(20, 10, 64, 64))
    assert np.array_equal(frames_of(plain.output), frames_of(cropped.output))
    other = animate(output="other.mp4", driving_crop=(8, 8, 32, 32), options=MotionOptions(relative=False))
    absolute = animate(output="absolute.mp4", options=MotionOptions(relative=False))
    assert not np.array_equal(frames_of(other.output), frames_of(absolute.output))


@pytest.fixture
def framed(inputs: Path, tmp_path: Path) -> Path:
    """The source in a flat picture of 95 x 81 pixels, at (20, 10)."""
    whole = np.full((81, 95, 3), (40, 90, 160), np.uint8)
    whole[10:74, 20:84] = load_image(inputs / "source.png")
    save_image(tmp_path / "framed.png", whole)
    return tmp_path / "framed.png"


def test_paste_back(animate: Animate, framed: Path, tmp_path: Path) -> None:
    whole = load_image(framed).astype(int)
    options: dict[str, Any] = {"source": framed, "crop": (20, 10, 64, 64), "audio": False}
    square = animate(output="square.mp4", **options)
    side = tmp_path / "side.mp4"
    result = animate(paste_back=True, side_by_side=side, **options)
    frames, squares = frames_of(result.output), frames_of(square.output)
    assert frames.shape == (COUNT, 82, 96, 3), "an odd side is made even"
    assert np.abs(frames[:, 81] - frames[:, 80]).max() <= 4, "by repeating its last row"
    assert np.abs(frames[:, :81, :95] - whole)[:, :8].max() <= 6, "the rest is the picture's"
    inner = np.abs(frames[:, 18:66, 28:76] - squares[:, 8:56, 8:56])
    assert inner.mean() < 5, "encoded twice"
    assert np.abs(squares - load_image(framed)[10:74, 20:84].astype(int)).mean() > 20
    with VideoReader(side) as reader:
        assert reader.size == (SIDE + 2 * round(95 * SIDE / 81), SIDE)


def test_paste_back_of_a_still_has_the_pictures_size(animate: Animate, framed: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "pose.png", draw_portrait(48, yaw=20, mouth=0.8))
    options: dict[str, Any] = {"source": framed, "crop": (20, 10, 64, 64), "options": MotionOptions(relative=False)}
    result = animate(tmp_path / "pose.png", "out.png", paste_back=True, **options)
    animate(tmp_path / "pose.png", "square.png", **options)
    picture, whole = load_image(result.output), load_image(framed)
    assert picture.shape == (81, 95, 3)
    assert np.array_equal(picture[14:70, 24:80], load_image(tmp_path / "square.png")[4:60, 4:60])
    assert np.array_equal(picture[:10], whole[:10])


def test_a_picture_gives_a_picture(animate: Animate, inputs: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "pose.png", draw_portrait(48, yaw=20, mouth=0.8))
    options = MotionOptions(relative=False)
    result = animate(tmp_path / "pose.png", "out.png", options=options, side_by_side=tmp_path / "side.png")
    assert (result.frames, load_image(result.output).shape) == (1, (SIDE, SIDE, 3))
    assert np.array_equal(load_image(tmp_path / "side.png")[:, 2 * SIDE :], load_image(result.output))
    with pytest.raises(InputError, match="absolute"):
        animate(tmp_path / "pose.png", "relative.png")
    with pytest.raises(InputError, match=r"\.png"):
        animate(tmp_path / "pose.png", "video.mp4", options=options)


def test_retargeting_ratios(
    animate: Animate, model: LivePortrait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios: list[tuple[float | None, float | None]] = []

    def recording_step(
        self: Animator, motion: Motion, eye_ratio: float | None = None, lip_ratio: float | None = None
    ) -> Tensor:
        ratios.append((eye_ratio, lip_ratio))
        return step_motion(self, motion, eye_ratio, lip_ratio)

    step_motion = Animator.step_motion
    monkeypatch.setattr(Animator, "step_motion", recording_step)
    options = MotionOptions(eye_retargeting=True, source_eye_ratio=(0.3, 0.3))
    with pytest.raises(InputError, match="eye retargeting needs eye_ratio"):
        animate(options=options)
    template = extract_template(model, driving_frames(2, 48), 25)
    openings = torch.tensor([[0.125, 0.2], [0.5, 0.6]])
    save_template(tmp_path / "motion.safetensors", dataclasses.replace(template, c_eyes=openings))
    animate(tmp_path / "motion.safetensors", options=options)
    assert ratios == [(0.125, None), (0.5, None)]  # the first eye's, as in the original
    ratios.clear()
    animate(tmp_path / "motion.safetensors", options=options, eye_ratio=0.25, lip_ratio=0.75)
    assert ratios == [(0.25, None)] * 2  # lips are not retargeted


def test_wrong_inputs_leave_nothing(animate: Animate, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    (tmp_path / "junk.pkl").write_bytes(b"junk" * 100)
    before = names(tmp_path)
    side = tmp_path / "side.mp4"
    for arguments, words in [
        ({"driving": tmp_path / "missing.mp4"}, "missing.mp4 does not exist"),
        ({"driving": tmp_path / "empty.mp4"}, "empty.mp4 is empty"),
        ({"driving": tmp_path / "junk.mp4"}, "junk.mp4 is not a video"),
        ({"driving": tmp_path / "junk.pkl"}, "junk.pkl"),
        ({"source": tmp_path / "junk.mp4"}, "junk.mp4 is not a video"),
        ({"source": tmp_path / "junk.pkl"}, "junk.pkl is not a picture"),
        ({"source": tmp_path / "missing.png"}, "missing.png does not exist"),
        ({"crop": (60, 0, 64, 64)}, "crop 60,0,64,64 leaves"),
        ({"driving_crop": (40, 0, 48, 48)}, "crop 40,0,48,48 leaves"),
        ({"output": "out.avi"}, r"must end in \.mp4"),
        ({"output": "no/out.mp4"}, "does not exist"),
        ({"output": "side.mp4", "side_by_side": side}, "named twice"),
        ({"side_by_side": inputs / "driving.mp4"}, "named twice"),
        ({"save_template": tmp_path / "motion.pkl"}, r"must end in \.safetensors"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            animate(**arguments)
        assert "\n" not in str(caught.value)
        assert names(tmp_path) == before


def test_a_template_has_nothing_to_crop(animate: Animate, model: LivePortrait, tmp_path: Path) -> None:
    save_template(tmp_path / "motion.safetensors", extract_template(model, driving_frames(1, 48), 25))
    with pytest.raises(InputError, match="no picture to crop"):
        animate(tmp_path / "motion.safetensors", driving_crop=(0, 0, 8, 8))


def test_read_only_folder_is_reported_before_any_work(
    animate: Animate, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root writes anywhere: let the system call refuse instead

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    calls: list[int] = []
    with pytest.raises(LpkernelsError, match="cannot write to the folder"):
        animate(output="locked/out.mp4", progress=lambda done, total: calls.append(done))
    assert calls == []


def test_a_clip_that_breaks_off_leaves_nothing(animate: Animate, tmp_path: Path) -> None:
    noise = list(np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8))
    data = write_clip(tmp_path / "a.mp4", noise).read_bytes()
    middle = len(data) // 3
    (tmp_path / "a.mp4").write_bytes(data[:middle] + bytes(8000) + data[middle + 8000 :])
    calls: list[int] = []
    with pytest.raises(InputError, match=r"a\.mp4 is damaged after frame"):
        animate(
            tmp_path / "a.mp4",
            side_by_side=tmp_path / "side.mp4",
            save_template=tmp_path / "motion.safetensors",
            progress=lambda done, total: calls.append(done),
        )
    assert calls
    assert names(tmp_path) == ["a.mp4"]


def interrupt_at(frame: int) -> Callable[[int, int | None], None]:
    def progress(done: int, total: int | None) -> None:
        if done == frame:
            raise KeyboardInterrupt

    return progress


def test_interrupt_leaves_nothing_and_says_so(animate: Animate, tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_bytes(b"an earlier file")
    with pytest.raises(KeyboardInterrupt, match=r"stopped after 3 of 6 frames; .*out\.mp4 was not written") as caught:
        animate(
            side_by_side=tmp_path / "side.mp4",
            save_template=tmp_path / "motion.safetensors",
            progress=interrupt_at(3),
        )
    assert "nothing was kept" in str(caught.value)
    assert names(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"an earlier file"


def test_interrupt_keeps_a_finished_template(animate: Animate, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"stopped after 8 of 12 frames; .*kept: .*motion\.safetensors"):
        animate(smooth=True, save_template=tmp_path / "motion.safetensors", progress=interrupt_at(COUNT + 2))
    assert names(tmp_path) == ["motion.safetensors"]
    assert load_template(tmp_path / "motion.safetensors").n_frames == COUNT


def test_a_template_that_cannot_be_written_takes_the_video_along(
    animate: Animate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lpkernels.animate._run.write_template", fail)
    with pytest.raises(OSError, match="No space"):
        animate(save_template=tmp_path / "motion.safetensors")
    assert names(tmp_path) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(animate: Animate, model: LivePortrait, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    frames = list(driving_frames(50, 48))

    def peak(count: int) -> int:
        clip = write_clip(tmp_path / f"{count}.mp4", (frames * -(-count // 50))[:count])
        sizes = []
        animate(clip, f"out{count}.mp4", progress=lambda done, total: sizes.append(process.memory_info().rss))
        return max(sizes)

    peak(50)
    short, long = peak(50), peak(500)
    assert (
        long < short + 20_000_000
    )  # 450 frames of the result alone are 5.5 MB, of the clip 3 MB, in float 4 times that
