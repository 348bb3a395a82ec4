"""The frame engine: what it takes and gives, what it remembers, and that it holds no more than a frame."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import lpkernels
from lpkernels import trace
from lpkernels.animate import engine
from lpkernels.animate.animator import Animator
from lpkernels.animate.extract import extract_template
from lpkernels.animate.image import Frame, save_image
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.source import prepare_source
from lpkernels.errors import InputError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait

SOURCE = draw_portrait(64)
CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
SIDE = 64


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return list(driving_frames(6, 64))


def test_public_name() -> None:
    assert lpkernels.Animator is Animator


def test_step_gives_what_it_takes(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, SOURCE)
    size = animator.output_size
    assert size == model.config.output_size == SIDE
    array = animator.step(clip[0])
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.uint8
    assert array.shape == (size, size, 3)
    tensor = animator.step(torch.from_numpy(clip[0]))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.device == model.device
    assert np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (37, 101), (480, 270)])
def test_driving_frames_of_any_size(model: LivePortrait, shape: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert Animator(model, SOURCE).step(frame).shape == (SIDE, SIDE, 3)


def test_views_and_read_only_arrays(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, SOURCE)
    wide = np.concatenate([clip[1], clip[2]], axis=1)
    expected = animator.step(clip[2])
    animator.reset()
    assert np.array_equal(animator.step(wide[:, 64:]), expected)
    animator.reset()
    frozen = clip[2][::-1].copy()
    frozen.flags.writeable = False
    assert np.array_equal(animator.step(frozen[::-1]), expected)


def test_every_kind_of_source(model: LivePortrait, clip: list[Frame], tmp_path: Path) -> None:
    save_image(tmp_path / "source.png", SOURCE)
    results = [
        Animator(model, source).step(clip[0])
        for source in (SOURCE, torch.from_numpy(SOURCE), tmp_path / "source.png", str(tmp_path / "source.png"))
    ]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_crop_of_the_source(model: LivePortrait, clip: list[Frame]) -> None:
    framed = np.zeros((100, 120, 3), np.uint8)
    framed[20:84, 30:94] = SOURCE
    cropped = Animator(model, framed, crop=(30, 20, 64, 64))
    assert np.array_equal(cropped.step(clip[0]), Animator(model, SOURCE).step(clip[0]))
    assert cropped.source.image.shape == (64, 64, 3)
    with pytest.raises(InputError, match="crop 100,20,64,64 leaves the picture"):
        Animator(model, framed, crop=(100, 20, 64, 64))


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, "frame must have dtype uint8"),
        (np.zeros((8, 8), np.uint8), ValueError, "frame must have shape"),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "at least one pixel"),
        ([[1]], TypeError, "frame must be a NumPy array"),
        (None, TypeError, "NoneType"),
    ],
)
def test_wrong_frames(
    model: LivePortrait, clip: list[Frame], frame: object, error: type[Exception], words: str
) -> None:
    animator = Animator(model, SOURCE)
    with pytest.raises(error, match=words):
        animator.step(frame)  # type: ignore[type-var]
    assert animator.driving_motion is None  # a refused frame is not the first one
    assert animator.step(clip[0]).shape == (SIDE, SIDE, 3)


def test_wrong_sources(model: LivePortrait, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Animator(model, tmp_path / "missing.png")
    with pytest.raises(TypeError, match="source must be a NumPy array"):
        Animator(model, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source must have shape"):
        Animator(model, np.zeros((8, 8, 4), np.uint8))


def test_relative_motion_counts_from_the_first_frame(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, SOURCE, options=MotionOptions(stitching=False))
    first = animator.step(clip[0])
    still = model.warp_decode(animator.source.feature_3d, animator.source.x_s, animator.source.x_s)
    # One pose seen twice changes nothing but the translation's z, which is dropped in both.
    assert np.abs(first.astype(int) - (still[0].permute(1, 2, 0) * 255).numpy()).max() < 2
    second = animator.step(clip[2])
    assert not np.array_equal(first, second)
    animator.reset()
    assert animator.driving_motion is None
    assert np.abs(animator.step(clip[2]).astype(int) - first).max() < 2


def test_absolute_motion_needs_no_first_frame(model: LivePortrait, clip: list[Frame]) -> None:
    options = MotionOptions(relative=False)
    one, other = Animator(model, SOURCE, options=options), Animator(model, SOURCE, options=options)
    one.step(clip[0])
    assert np.array_equal(one.step(clip[3]), other.step(clip[3]))


@pytest.mark.parametrize(
    "options",
    [
        MotionOptions(region="exp"),
        MotionOptions(region="lip", relative=False),
        MotionOptions(driving_multiplier=2.0),
    ],
)
def test_options_reach_the_frame(model: LivePortrait, clip: list[Frame], options: MotionOptions) -> None:
    plain, other = Animator(model, SOURCE), Animator(model, SOURCE, options=options)
    for animator in (plain, other):
        animator.step(clip[0])
    assert not np.array_equal(plain.step(clip[2]), other.step(clip[2]))


def test_expression_friendly_motion_is_scaled_by_what_the_first_frame_gives(
    model: LivePortrait, clip: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def multiplier(*_: object) -> torch.Tensor:
        measured.append(2.0)
        return torch.full((1, 1, 1), measured[-1])

    monkeypatch.setattr(engine, "convex_hull_multiplier", multiplier)
    plain = Animator(model, SOURCE)
    scaled = Animator(model, SOURCE, options=MotionOptions(driving_option="expression-friendly"))
    frames = [(plain.step(clip[i]), scaled.step(clip[i])) for i in (0, 2, 3)]
    assert np.abs(frames[0][0].astype(int) - frames[0][1]).max() <= 1, "the first frame is where motion begins"
    assert all(np.abs(one.astype(int) - other).max() > 4 for one, other in frames[1:])
    assert measured == [2.0]


def test_retargeting_takes_its_ratio_each_frame(model: LivePortrait, clip: list[Frame]) -> None:
    options = MotionOptions(eye_retargeting=True, source_eye_ratio=(0.3, 0.3))
    animator = Animator(model, SOURCE, options=options)
    closed, opened = animator.step(clip[0], eye_ratio=0.0), animator.step(clip[0], eye_ratio=0.6)
    assert not np.array_equal(closed, opened)
    with pytest.raises(InputError, match="eye"):
        animator.step(clip[0])


def test_another_source_keeps_the_first_frame(model: LivePortrait, clip: list[Frame]) -> None:
    other = draw_portrait(64, yaw=10)
    options = MotionOptions(driving_option="expression-friendly")
    animator = Animator(model, SOURCE, options=options)
    animator.step(clip[0])
    animator.set_source(other)
    changed = animator.step(clip[2])
    reference = Animator(model, other, options=options)
    reference.step(clip[0])
    assert np.array_equal(changed, reference.step(clip[2]))


def test_run_is_lazy(model: LivePortrait, clip: list[Frame]) -> None:
    taken = []

    def frames() -> Iterator[Frame]:
        for index in itertools.count():
            taken.append(index)
            yield clip[index % 6]

    results = Animator(model, SOURCE).run(frames())
    for _ in range(3):
        next(results)
    assert taken == [0, 1, 2]


def test_a_template_replays_the_clip(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, SOURCE)
    frames = list(animator.run(clip))
    template = extract_template(model, iter(clip), 24)
    assert (template.n_frames, float(template.fps)) == (6, 24.0)
    replayed = list(animator.run_template(template))
    assert len(replayed) == 6
    for frame, again in zip(frames, replayed, strict=True):
        assert np.abs(frame.astype(int) - again).max() <= 1


def test_template_of_nothing(model: LivePortrait) -> None:
    with pytest.raises(InputError, match="at least one"):
        extract_template(model, [], 25)


def test_motion_of_another_model(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, SOURCE)
    animator.step(clip[0])
    motion = animator.driving_motion
    assert motion is not None
    with pytest.raises(InputError, match=r"exp must have shape \(1, 21, 3\), got \(1, 20, 3\)"):
        animator.step_motion(dataclasses.replace(motion, exp=motion.exp[:, :20]))


def test_ranges(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, SOURCE)
    with trace.record() as recorder:
        animator.step(clip[0])
        animator.step(clip[1])
    calls = {(row.category, row.name): row.calls for row in recorder.rows()}
    assert calls["frame", "frame"] == 2
    assert calls["network", "motion_extractor"] == calls["network", "spade_generator"] == 2
    assert ("network", "appearance_feature_extractor") not in calls


def test_bfloat16(clip: list[Frame]) -> None:
    frames = []
    for dtype in (torch.float32, torch.bfloat16):
        animator = Animator(LivePortrait.random(0, CONFIG, dtype=dtype), SOURCE)
        frames.append([animator.step(frame).astype(int) for frame in clip[:1]])
    assert np.abs(np.array(frames[0]) - frames[1]).mean() < 12


def test_prepared_source(model: LivePortrait) -> None:
    source = prepare_source(model, SOURCE)
    config = model.config.appearance_feature_extractor
    assert source.feature_3d.shape == (1, config.reshape_channel, config.reshape_depth, 8, 8)
    assert source.x_s.shape == (1, 21, 3)
    assert np.array_equal(source.image, SOURCE)


def test_memory_does_not_grow_with_the_clip(model: LivePortrait, clip: list[Frame]) -> None:
    def peak(count: int) -> int:
        animator = Animator(model, SOURCE)
        tracemalloc.start()
        for _ in animator.run(itertools.islice(itertools.cycle(clip), count)):
            pass
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(3)
    assert peak(40) < peak(4) + 100_000  # a frame of the clip and one of the result are 24,576 bytes


@pytest.mark.gpu
def test_on_the_gpu(clip: list[Frame], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    reference = Animator(LivePortrait.random(0, CONFIG), SOURCE)
    animator = Animator(LivePortrait.random(0, CONFIG, device="cuda"), SOURCE)
    for frame in clip:
        expected, came = reference.step(frame), animator.step(frame)
        assert np.abs(came.astype(int) - expected).mean() < 0.5
    tensor = animator.step(torch.from_numpy(clip[0]))
    assert tensor.device.type == "cuda"
