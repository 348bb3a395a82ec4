"""The engine: frames recorded once and replayed, what needs another recording and what does not, frames under way."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels.animate import engine
from lpkernels.animate._jobs import Jobs
from lpkernels.animate.animator import Animator
from lpkernels.animate.engine import PLANS, FrameEngine
from lpkernels.animate.extract import extract_template, network_input, read_motion
from lpkernels.animate.image import Frame
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions, convex_hull_multiplier, drive
from lpkernels.animate.source import prepare_source
from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.ops import unpack_motion
from tests.host_data import NoHostData

SOURCE, OTHER = draw_portrait(64), draw_portrait(64, yaw=10)
CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
FRIENDLY = MotionOptions(driving_option="expression-friendly")
RETARGETED = MotionOptions(
    eye_retargeting=True, lip_retargeting=True, source_eye_ratio=(0.3, 0.2), source_lip_ratio=0.1
)


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return list(driving_frames(6, 64))


class Recorder:
    """Stands in for CUDA graphs: counts recordings and replays, and repeats the call."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.failures: list[Exception] = []

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        if self.failures:
            raise self.failures.pop()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            with NoHostData():
                run()

        return replay


def recorded(
    model: LivePortrait, source: Frame = SOURCE, options: MotionOptions | None = None
) -> tuple[Animator, Recorder]:
    """An animator on the CPU whose frames take the path of recorded ones."""
    animator, recorder = Animator(model, source, options=options), Recorder()
    animator._engine = FrameEngine(model, animator.options, animator.source, record=recorder)
    animator._jobs = Jobs(animator._engine, model.config.output_size)
    return animator, recorder


def test_recorded_frames_are_the_called_ones(model: LivePortrait, clip: list[Frame]) -> None:
    called, (animator, recorder) = Animator(model, SOURCE), recorded(model)
    for frame in clip[:3]:
        assert np.array_equal(animator.step(frame), called.step(frame))
    assert (recorder.recorded, recorder.replayed) == (1, 4)  # the first frame twice


def test_another_source_or_clip_is_not_recorded_again(model: LivePortrait, clip: list[Frame]) -> None:
    animator, recorder = recorded(model)
    animator.step(clip[0])
    before = animator.source
    kept = before.feature_3d.clone()
    animator.set_source(OTHER)
    reference = Animator(model, OTHER)
    reference.step(clip[0])
    assert np.array_equal(animator.step(clip[2]), reference.step(clip[2]))
    animator.reset()
    reference.reset()
    assert np.array_equal(animator.step(clip[3]), reference.step(clip[3]))
    assert recorder.recorded == 1
    assert torch.equal(before.feature_3d, kept)  # the source that someone may hold is not the engine's buffer


def test_one_recording_for_each_size_and_batch_and_few_of_them(model: LivePortrait, clip: list[Frame]) -> None:
    animator, recorder = recorded(model)
    for _ in range(2):
        animator.step(clip[0])
        animator.step(clip[0][:40, :50])
    assert recorder.recorded == 2
    for batch in (2, 3, 2):
        animator.step_batch(np.stack(clip[:batch]))
    assert recorder.recorded == PLANS
    animator.step(clip[0])
    animator.step(clip[0][:8, :8])  # 40x50, unused the longest, makes room
    animator.step(clip[0])
    assert (recorder.recorded, len(animator._engine._plans)) == (PLANS + 1, PLANS)
    animator.step(clip[0][:40, :50])
    assert recorder.recorded == PLANS + 2


def test_a_batch_is_its_frames(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, SOURCE)
    frames = np.stack([animator.step(frame) for frame in clip[:3]])
    last = animator.driving_motion
    animator.reset()
    batch = animator.step_batch(np.stack(clip[:3]))
    assert batch.shape == (3, 64, 64, 3)
    assert np.abs(batch.astype(int) - frames).max() <= 1
    assert last is not None
    assert animator.driving_motion is not None
    torch.testing.assert_close(animator.driving_motion.exp, last.exp, atol=1e-5, rtol=1e-4)
    tensors = animator.step_batch(torch.from_numpy(np.stack(clip[:3])))
    assert np.abs(tensors.numpy().astype(int) - batch).max() <= 1
    for wrong in (clip[0], np.zeros((1, 8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"frames must have shape \(batch, height, width, 3\)"):
            animator.step_batch(wrong)
    for empty in ((0, 8, 8, 3), (1, 0, 8, 3)):
        with pytest.raises(ValueError, match="frames must have at least one pixel"):
            animator.step_batch(np.zeros(empty, np.uint8))
    with pytest.raises(ValueError, match="move the channels last"):
        animator.step_batch(np.zeros((1, 3, 8, 8), np.uint8))
    with pytest.raises(TypeError, match="frames must be a NumPy array"):
        animator.step_batch(clip)  # type: ignore[type-var]


def test_a_failed_recording_leaves_nothing(model: LivePortrait, clip: list[Frame]) -> None:
    animator, recorder = recorded(model)
    recorder.failures = [LpkernelsError("cannot be recorded; graph=False runs without")]
    with pytest.raises(LpkernelsError, match="graph=False"):
        animator.step(clip[1])
    assert animator.driving_motion is None
    reference = Animator(model, SOURCE)
    for frame in (clip[0], clip[2]):  # the first frame is the one that ran
        assert np.array_equal(animator.step(frame), reference.step(frame))
    assert recorder.recorded == 1


def test_graph_needs_a_gpu(model: LivePortrait) -> None:
    with pytest.raises(InputError, match="graph=True needs a model on a CUDA device, got cpu"):
        Animator(model, SOURCE, graph=True)
    assert not Animator(model, SOURCE)._engine.records


def test_the_hull_is_measured_once_for_a_clip_and_a_source(
    model: LivePortrait, clip: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return convex_hull_multiplier(*arguments)

    monkeypatch.setattr(engine, "convex_hull_multiplier", counted)
    animator, recorder = recorded(model, options=FRIENDLY)
    for frame in clip[:3]:
        animator.step(frame)
    assert len(calls) == 1
    animator.set_source(OTHER)
    for frame in clip[:2]:
        animator.step(frame)
    assert len(calls) == 2
    animator.reset()
    animator.step(clip[1])
    assert (len(calls), recorder.recorded) == (3, 1)


def test_a_first_frame_without_a_hull_is_not_the_first(
    model: LivePortrait, clip: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    def flat(*arguments: Any) -> torch.Tensor:
        raise LpkernelsError("keypoints in one plane")

    animator, reference = Animator(model, SOURCE, options=FRIENDLY), Animator(model, SOURCE, options=FRIENDLY)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "convex_hull_multiplier", flat)
        with pytest.raises(LpkernelsError, match="one plane"):
            animator.step(clip[3])
    assert animator.driving_motion is None
    for frame in clip[:2]:
        assert np.array_equal(animator.step(frame), reference.step(frame))


@pytest.mark.parametrize(
    "options",
    [
        MotionOptions(),
        MotionOptions(relative=False),
        MotionOptions(region="exp", driving_multiplier=1.5),
        MotionOptions(region="lip", relative=False),
        MotionOptions(region="eyes", stitching=False),
        MotionOptions(region="pose"),
        FRIENDLY,
        RETARGETED,
        dataclasses.replace(RETARGETED, relative=False, lip_retargeting=False, driving_multiplier=0.5),
    ],
)
def test_keypoints_are_those_of_drive(model: LivePortrait, clip: list[Frame], options: MotionOptions) -> None:
    source = prepare_source(model, SOURCE)
    first, driving = (read_motion(model, network_input(model, "frame", clip[index])) for index in (0, 3))
    expected = drive(model, source.motion, source.x_s, driving, first, options, eye_ratio=0.4, lip_ratio=0.05)
    machine = FrameEngine(model, options, source)
    for index in (0, 3):
        plan = machine.plan_pictures(1, 64, 64)
        plan.inputs.copy_(torch.from_numpy(clip[index])[None])
        machine.run(plan, 0.4, 0.05)
    torch.testing.assert_close(plan._x_d, expected, atol=2e-5, rtol=1e-4)
    rows = machine.rows()
    assert rows is not None
    torch.testing.assert_close(unpack_motion(rows.motion)[1], driving.R, atol=1e-5, rtol=1e-4)


def test_openings_change_without_a_recording(model: LivePortrait, clip: list[Frame]) -> None:
    animator, recorder = recorded(model, options=RETARGETED)
    reference = Animator(model, SOURCE, options=RETARGETED)
    for eye, lip in ((0.0, 0.1), (0.6, 0.1), (0.6, 0.4), (0.0, 0.1)):
        assert np.array_equal(animator.step(clip[0], eye, lip), reference.step(clip[0], eye, lip))
    assert recorder.recorded == 1
    with pytest.raises(InputError, match="lip_ratio"):
        animator.step(clip[0], 0.5)
    with pytest.raises(InputError, match="eye_ratio must be a number"):
        animator.step(clip[0], -1.0, 0.1)


def test_other_options_from_the_next_frame_on(model: LivePortrait, clip: list[Frame]) -> None:
    animator, recorder = recorded(model)
    animator.step(clip[0])
    motion = animator.driving_motion
    animator.options = FRIENDLY
    assert animator.options is FRIENDLY
    assert animator.driving_motion is motion
    reference = Animator(model, SOURCE, options=FRIENDLY)
    reference.step(clip[0])
    assert np.array_equal(animator.step(clip[2]), reference.step(clip[2]))  # the first frame stays
    assert recorder.recorded == 2


def test_absolute_motion_remembers_a_first_frame_for_later(model: LivePortrait, clip: list[Frame]) -> None:
    animator, recorder = recorded(model, options=MotionOptions(relative=False))
    animator.step(clip[0])
    assert recorder.replayed == 1
    animator.options = MotionOptions()
    reference = Animator(model, SOURCE)
    reference.step(clip[0])
    assert np.array_equal(animator.step(clip[2]), reference.step(clip[2]))


def test_answers_and_motions_are_the_callers(model: LivePortrait, clip: list[Frame]) -> None:
    animator, _ = recorded(model)
    tensor = animator.step(torch.from_numpy(clip[0]))
    array = animator.step(clip[1])
    motion = animator.driving_motion
    assert motion is not None
    assert motion.kp is not None
    copies = tensor.clone(), array.copy(), motion.exp.clone(), motion.kp.clone()
    animator.set_source(OTHER)
    list(animator.run(clip))
    for mine, copy in zip((tensor, array, motion.exp, motion.kp), copies, strict=True):
        assert np.array_equal(mine, copy)


def test_motion_steps_are_recorded_apart(model: LivePortrait, clip: list[Frame]) -> None:
    template = extract_template(model, iter(clip[:3]), 25)
    animator, recorder = recorded(model)
    replayed = list(animator.run_template(template))
    assert recorder.recorded == 1
    motion = animator.driving_motion
    assert motion is not None
    assert torch.equal(motion.exp, template.motion(2).exp)
    reference = Animator(model, SOURCE)
    for frame, again in zip(clip, replayed, strict=False):
        assert np.abs(reference.step(frame).astype(int) - again).max() <= 1
    animator.step(clip[0])
    assert recorder.recorded == 2


def test_modes_of_the_caller(model: LivePortrait, clip: list[Frame]) -> None:
    reference = Animator(model, SOURCE)
    with torch.inference_mode():
        animator, _ = recorded(model)
        first = animator.step(clip[0])
    assert np.array_equal(first, reference.step(clip[0]))
    assert np.array_equal(animator.step(clip[1]), reference.step(clip[1]))
    with torch.inference_mode():
        animator.set_source(OTHER)
        animator.step(torch.from_numpy(clip[2]))
    animator.set_source(SOURCE)
    with torch.enable_grad():
        assert np.array_equal(animator.step(clip[3]), reference.step(clip[3]))


def test_warm_up_is_measured(model: LivePortrait, clip: list[Frame]) -> None:
    animator, recorder = recorded(model)
    assert animator.warm_up_seconds == 0
    seconds = animator.warm_up((64, 64))
    assert 0 < seconds == animator.warm_up_seconds
    assert animator.warm_up((64, 64)) == 0
    reference = Animator(model, SOURCE)
    assert reference.warm_up() > 0
    for frame in clip[:2]:  # warming up is no first frame
        assert np.array_equal(animator.step(frame), reference.step(frame))
    assert recorder.recorded == 1
    with pytest.raises(InputError, match="size must be"):
        animator.warm_up((0, 8))


def test_run_with_frames_ahead(model: LivePortrait, clip: list[Frame]) -> None:
    in_turn, ahead = Animator(model, SOURCE), Animator(model, SOURCE)
    pairs = zip(in_turn.run(clip), ahead.run(iter(clip), ahead=2), strict=True)
    for one, other in pairs:
        assert np.array_equal(one, other)
        assert in_turn.driving_motion is not None
        assert ahead.driving_motion is not None
        assert torch.equal(in_turn.driving_motion.exp, ahead.driving_motion.exp)  # that of the frame just yielded
    with pytest.raises(InputError, match="ahead must be 0 or more"):
        ahead.run(clip, ahead=-1)


def test_a_frame_that_is_none_ends_a_run(model: LivePortrait, clip: list[Frame]) -> None:
    results = Animator(model, SOURCE).run([clip[0], clip[1], clip[2][..., 0]], ahead=2)
    assert len([next(results), next(results)]) == 2
    with pytest.raises(ValueError, match="frame must have shape"):
        next(results)


def test_threads_share_a_model(model: LivePortrait, clip: list[Frame]) -> None:
    expected = [Animator(model, source).step(clip[1]) for source in (SOURCE, OTHER)]
    results: dict[int, Frame] = {}

    def work(index: int) -> None:
        results[index] = Animator(model, (SOURCE, OTHER)[index]).step(clip[1])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[index], expected[index]) for index in range(2))
