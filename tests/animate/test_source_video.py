"""A video as source: the motion its frames take, what each becomes, and the files that come of it."""

from __future__ import annotations

import dataclasses
import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels.animate import _source_video
from lpkernels.animate._source_video import SourceVideo, combined_motion
from lpkernels.animate.animator import Animator
from lpkernels.animate.crop import Crop, transform_points
from lpkernels.animate.extract import extract_template
from lpkernels.animate.image import Frame, load_image, save_image
from lpkernels.animate.motion import transform_keypoints
from lpkernels.animate.pipeline import Result, animate_file
from lpkernels.animate.portrait import SOURCE_LOOK, draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions, stitched
from lpkernels.animate.source import prepare_source
from lpkernels.animate.template import MotionTemplate, load_template, save_template
from lpkernels.errors import InputError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.animate.clips import streams, write_clip, write_tone
from tests.animate.test_pipeline import frames_of, interrupt_at, names

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
SIDE, COUNT = 64, 5
LISTED = [1, 2, 6, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]  # whose expression is taken on all axes


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


def source_frames(count: int = COUNT) -> list[Frame]:
    """A head that nods, 90 wide and 70 high, in a flat picture."""
    whole = np.full((count, 70, 90, 3), (40, 90, 160), np.uint8)
    for index, frame in enumerate(whole):
        frame[3:67, 13:77] = draw_portrait(64, pitch=4 * index, yaw=-3 * index, look=SOURCE_LOOK)
    return list(whole)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """source.mp4 (5 frames, 24 a second, a tone) and driving.mp4 (7 frames, 30 a second, silent)."""
    folder = tmp_path_factory.mktemp("files")
    tone = write_tone(folder / "tone.wav", 1.0)
    write_clip(folder / "source.mp4", source_frames(), 24, tone)
    write_clip(folder / "driving.mp4", list(driving_frames(7, 48)), 30)
    return folder


def animate(model: LivePortrait, files: Path, output: Path, **options: Any) -> Result:
    source, driving = (options.pop(name, files / f"{name}.mp4") for name in ("source", "driving"))
    return animate_file(model, source, driving, output, **options)


@pytest.fixture
def templates(model: LivePortrait) -> tuple[MotionTemplate, MotionTemplate]:
    return extract_template(model, source_frames()), extract_template(model, driving_frames(COUNT, 48))


@pytest.fixture
def unsmoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_source_video, "_OBSERVATION", 1e-30)


@pytest.mark.usefixtures("unsmoothed")
def test_relative_motion_is_added_to_each_frames_own(templates: tuple[MotionTemplate, MotionTemplate]) -> None:
    source, driving = templates
    moved = combined_motion(source, driving, MotionOptions())
    for i in range(COUNT):
        exp = source.exp[i] + driving.exp[i] - driving.exp[0]
        torch.testing.assert_close(moved.exp[i, LISTED], exp[LISTED], atol=1e-6, rtol=0)
        torch.testing.assert_close(moved.exp[i, 9, 1:], exp[9, 1:], atol=1e-6, rtol=0)
        assert torch.equal(moved.exp[i, [0, 7, 10]], source.exp[i, [0, 7, 10]]), "not in the original's lists"
        R = driving.R[i] @ driving.R[0].T @ source.R[i]
        torch.testing.assert_close(moved.R[i], R, atol=1e-5, rtol=0)
    assert torch.equal(moved.t, source.t)
    assert torch.equal(moved.scale, source.scale)
    assert moved.kp is source.kp


@pytest.mark.usefixtures("unsmoothed")
@pytest.mark.parametrize(
    ("region", "posed", "taken"), [("pose", True, []), ("lip", False, [6, 12]), ("exp", False, [1])]
)
def test_regions(templates: tuple[MotionTemplate, MotionTemplate], region: str, posed: bool, taken: list[int]) -> None:
    source, driving = templates
    moved = combined_motion(source, driving, MotionOptions(region=region, relative=False))
    changed = (moved.exp != source.exp).any(0).any(1)
    assert bool(changed[taken].all())
    assert not bool(changed[0])
    assert torch.equal(moved.R, source.R) != posed
    torch.testing.assert_close(moved.t, driving.t if posed else source.t)
    torch.testing.assert_close(moved.exp[:, taken], driving.exp[:, taken], atol=1e-6, rtol=0)


def test_motion_is_smoothed_where_frames_drive(templates: tuple[MotionTemplate, MotionTemplate]) -> None:
    source, driving = templates
    shaken = dataclasses.replace(driving, exp=driving.exp + 1e-3 * torch.randn(driving.exp.shape))
    moved = combined_motion(source, shaken, MotionOptions())
    raw = (source.exp + shaken.exp - shaken.exp[:1])[:, LISTED]
    assert float((moved.exp[:, LISTED] - raw).abs().max()) > 1e-6
    assert float(moved.exp[:, LISTED].diff(dim=0).abs().sum()) < float(raw.diff(dim=0).abs().sum())
    torch.testing.assert_close(torch.linalg.det(moved.R), torch.ones(COUNT))
    one = combined_motion(source, driving.head(1), MotionOptions(relative=False))
    assert torch.equal(one.exp[:, LISTED], driving.exp[:1, LISTED].expand(COUNT, -1, -1)), "one frame is not smoothed"
    with pytest.raises(InputError, match=r"exp must have shape \(5, 21, 3\), or of one frame; got \(3, 21, 3\)"):
        combined_motion(source, driving.head(3), MotionOptions())


@pytest.mark.parametrize("options", [MotionOptions(), MotionOptions(stitching=False, driving_multiplier=0.5)])
def test_a_source_takes_the_motion_as_it_is(
    model: LivePortrait, templates: tuple[MotionTemplate, MotionTemplate], options: MotionOptions
) -> None:
    source, driving = templates
    moved = combined_motion(source, driving, options)
    frames = source_frames()
    sources = [prepare_source(model, frame, motion=source.motion(i)) for i, frame in enumerate(frames)]
    animator = Animator(model, frames[0], options=options)
    animator.step(draw_portrait(64))  # what was the reference before is forgotten
    answers = list(animator.run_sources(zip(sources, moved.motions(), strict=True)))
    for prepared, motion, answer in zip(sources, moved.motions(), answers, strict=True):
        assert prepared.motion.kp is not None
        x_d = transform_keypoints(prepared.motion.kp, motion.R, motion.exp, motion.scale, motion.t)
        x_d = stitched(model, prepared.x_s, x_d) if options.stitching else x_d
        x_d = prepared.x_s + (x_d - prepared.x_s) * options.driving_multiplier
        truth = model.render(model.prepare_warp(prepared.feature_3d, prepared.x_s), x_d)[0].numpy()
        assert np.abs(answer.astype(int) - truth).max() <= 1
    assert np.abs(answers[0].astype(int) - answers[-1]).max() > 10


def test_sources_take_plain_options_only(model: LivePortrait) -> None:
    animator = Animator(model, source_frames()[0], options=MotionOptions(relative=False))
    with pytest.raises(InputError, match="options must be MotionOptions"):
        animator.run_sources([])


def test_the_shorter_clip_counts(model: LivePortrait, files: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    result = animate(model, files, tmp_path / "out.mp4", progress=lambda done, total: calls.append((done, total)))
    assert (result.frames, result.fps) == (COUNT, 24)
    assert calls == [(done, 2 * COUNT) for done in range(1, 2 * COUNT + 1)]
    frames = frames_of(result.output)
    assert frames.shape == (COUNT, SIDE, SIDE, 3)
    assert streams(result.output)["audio"][0] == "aac", "the source's sound, for the driving clip has none"
    short = write_clip(tmp_path / "short.mp4", list(driving_frames(7, 48))[:3])
    again = animate(model, files, tmp_path / "again.mp4", driving=short, audio=False)
    assert again.frames == 3
    assert set(streams(again.output)) == {"video"}
    assert names(tmp_path) == ["again.mp4", "out.mp4", "short.mp4"]


def test_whole_frames_with_the_face_in_its_place(model: LivePortrait, files: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"crop": (14, 4, 64, 64), "audio": False}
    side = tmp_path / "side.mp4"
    square = frames_of(animate(model, files, tmp_path / "square.mp4", **options).output)
    pasted = animate(model, files, tmp_path / "whole.mp4", paste_back=True, side_by_side=side, **options)
    whole = frames_of(pasted.output)
    given = frames_of(files / "source.mp4")
    assert whole.shape == given.shape == (COUNT, 70, 90, 3)
    assert np.abs(whole - given)[:, :, :8].max() <= 8, "the rest is each source frame's"
    assert np.abs(whole[:, 12:60, 22:70] - square[:, 8:56, 8:56]).mean() < 6
    row = frames_of(side)
    assert row.shape == (COUNT, SIDE, SIDE + 2 * round(90 * SIDE / 70), 3)
    assert np.abs(row[0, :, SIDE : SIDE + 80] - row[4, :, SIDE : SIDE + 80]).mean() > 1, "each row has its source frame"


def test_a_template_drives_and_is_kept(model: LivePortrait, files: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    first = animate(model, files, tmp_path / "first.mp4", save_template=kept)
    assert load_template(kept).n_frames == COUNT
    second = animate(model, files, tmp_path / "second.mp4", driving=kept)
    assert np.abs(frames_of(first.output) - frames_of(second.output)).max() <= 4


def test_one_picture_drives_the_whole_video(model: LivePortrait, files: Path, tmp_path: Path) -> None:
    pose = tmp_path / "pose.png"
    save_image(pose, draw_portrait(48, yaw=15, mouth=0.7))
    absolute = MotionOptions(relative=False)
    result = animate(
        model, files, tmp_path / "out.mp4", driving=pose, options=absolute, side_by_side=tmp_path / "side.mp4"
    )
    assert result.frames == COUNT
    assert len(frames_of(tmp_path / "side.mp4")) == COUNT
    one = extract_template(model, [load_image(pose)])
    save_template(tmp_path / "one.safetensors", one)
    again = animate(model, files, tmp_path / "again.mp4", driving=tmp_path / "one.safetensors", options=absolute)
    assert np.abs(frames_of(result.output) - frames_of(again.output)).max() <= 4
    with pytest.raises(InputError, match="absolute"):
        animate(model, files, tmp_path / "relative.mp4", driving=pose)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"options": MotionOptions(driving_option="expression-friendly")}, "'expression-friendly' is for a source"),
        ({"options": MotionOptions(lip_retargeting=True, source_lip_ratio=0.1)}, "retargeting are for a source"),
        ({"crop": (60, 3, 64, 64)}, "crop 60,3,64,64 leaves the picture, which is 90x70"),
        ({"crop": "face"}, "of a source video one face is animated"),
        ({"output": "out.png"}, r"must end in \.mp4"),
    ],
)
def test_what_does_not_go_with_a_video(
    model: LivePortrait, files: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    output = tmp_path / options.pop("output", "out.mp4")
    with pytest.raises(InputError, match=words):
        animate(model, files, output, **options)
    assert names(tmp_path) == []


def test_interrupt(model: LivePortrait, files: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"stopped after 7 of 10 frames; .*nothing was kept"):
        animate(model, files, tmp_path / "out.mp4", progress=interrupt_at(7))
    assert names(tmp_path) == []


HAS_EXTRA = importlib.util.find_spec("mtcnn") is not None
needs_extra = pytest.mark.skipif(not HAS_EXTRA, reason="needs the extra: pip install 'lpkernels[face]'")


def moving_portrait(path: Path, missing: tuple[int, ...] = ()) -> Path:
    """A drawn portrait that moves 6 pixels to the right a frame; in the ``missing`` frames there is none."""
    frames = np.full((6, 240, 340, 3), (190, 200, 205), np.uint8)
    for index, frame in enumerate(frames):
        if index not in missing:
            frame[10:210, 20 + 6 * index : 220 + 6 * index] = draw_portrait(200)
    return write_clip(path, list(frames), Fraction(25))


@needs_extra
@pytest.mark.parametrize("missing", [(), (0, 3)])
def test_the_crop_follows_the_face(model: LivePortrait, tmp_path: Path, missing: tuple[int, ...]) -> None:
    clip = moving_portrait(tmp_path / "moving.mp4", missing)
    video = SourceVideo(model, clip, "auto", paste_back=True)
    steps: list[int] = []
    video.follow(lambda: steps.append(1), None)
    assert len(steps) == 6

    def middle(crop: Crop) -> np.ndarray:
        return transform_points(np.array([[SIDE / 2, SIDE / 2]]), crop.M_c2o)[0]

    track = np.array([middle(crop) for crop in video._crops])
    assert np.abs(track[:, 1] - track[0, 1]).max() < 5
    assert track[5, 0] - track[1, 0] == pytest.approx(24, abs=9 if missing else 6)
    result = animate_file(model, clip, clip, tmp_path / "out.mp4", crop="auto", paste_back=True, audio=False)
    assert frames_of(result.output).shape == (6, 240, 340, 3)


@needs_extra
def test_a_video_without_a_face(model: LivePortrait, tmp_path: Path) -> None:
    clip = moving_portrait(tmp_path / "empty.mp4", tuple(range(6)))
    with pytest.raises(InputError, match=r"no face was found in .*empty\.mp4"):
        animate_file(model, clip, clip, tmp_path / "out.mp4", crop="auto")
