"""What a frame does on the device beside its recorded graph: counted, so that it cannot grow unnoticed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lpkernels.animate._jobs import Jobs
from lpkernels.animate._plan import FramePlan
from lpkernels.animate.animator import Animator
from lpkernels.animate.engine import FrameEngine
from lpkernels.animate.image import Frame
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions
from lpkernels.errors import LpkernelsError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BESIDE = {"cpu": {"clone": 1}, "cuda": {"copy_": 1, "clone": 1}}  # in and out; in on the CPU is NumPy's
NO_WORK = {"empty", "empty_like", "empty_strided", "view", "_unsafe_view", "slice", "select", "unsqueeze", "expand"}
NO_WORK |= {
    "record_stream",
    "alias",
    "detach",
    "as_strided",
    "reshape",
    "_reshape_alias",
    "split",
    "squeeze",
    "permute",
    "t",
}


class Counting(TorchDispatchMode):
    """Counts calls of ATen's ops that do something on the device; nothing while ``paused``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if not self.paused and name not in NO_WORK:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


class SameMemory:
    """Stands in for CUDA graphs: a replay writes its answers where the recording's lie, and counts as nothing."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        plan: FramePlan = run.__self__  # type: ignore[attr-defined]
        run()
        kept = {name: getattr(plan, name) for name in ("heads", "motion", "output")}

        def replay() -> None:
            self._counting.paused = True
            run()
            for name, tensor in kept.items():
                if getattr(plan, name) is not tensor:
                    setattr(plan, name, tensor.copy_(getattr(plan, name)))
            self._counting.paused = False

        return replay


@pytest.fixture(scope="module")
def models() -> dict[str, LivePortrait]:
    return {}


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return list(driving_frames(6, 64))


@pytest.fixture
def counting() -> Iterator[Counting]:
    with Counting() as mode:
        yield mode


def warm(
    models: dict[str, LivePortrait], device: str, counting: Counting, options: MotionOptions | None = None
) -> Animator:
    """An animator whose frames are recorded, on a GPU as graphs."""
    if device not in models:
        models[device] = LivePortrait.random(0, CONFIG, device=device)
    animator = Animator(models[device], draw_portrait(64), options=options)
    if device == "cpu":
        engine = FrameEngine(models[device], animator.options, animator.source, record=SameMemory(counting))
        animator._engine, animator._jobs = engine, Jobs(engine, CONFIG.output_size)
    assert animator._engine.records
    return animator


@pytest.mark.parametrize("device", DEVICES)
def test_a_frame_is_its_graph_and_a_copy_each_way(
    models: dict[str, LivePortrait], device: str, clip: list[Frame], counting: Counting
) -> None:
    animator = warm(models, device, counting)
    frames = [torch.from_numpy(frame).to(device) for frame in clip]
    animator.step(frames[0])
    animator.step(clip[0])
    for frame in frames[1:3]:
        counting.calls.clear()
        animator.step(frame)
        assert counting.calls == BESIDE[device]
        counting.calls.clear()
        animator.step_batch(frame[None])
        assert counting.calls == BESIDE[device]
    counting.calls.clear()
    animator.step(clip[4])
    assert counting.calls == ({} if device == "cpu" else {"copy_": 2})  # on the CPU the answer is the memory itself


@pytest.mark.parametrize("device", DEVICES)
def test_a_look_at_the_motion_costs_that_frame_alone(
    models: dict[str, LivePortrait], device: str, clip: list[Frame], counting: Counting
) -> None:
    animator = warm(models, device, counting)
    frames = [torch.from_numpy(frame).to(device) for frame in clip]
    for frame in frames[:2]:
        animator.step(frame)
    counting.calls.clear()
    motion = animator.driving_motion
    assert motion is not None
    assert counting.calls["clone"] == 2
    looked = motion.exp.clone()
    counting.calls.clear()
    animator.step(frames[2])
    assert counting.calls == BESIDE[device]
    assert torch.equal(motion.exp, looked)


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_motions_are_those_of_the_frames_that_were_yielded(
    models: dict[str, LivePortrait], device: str, ahead: int, clip: list[Frame], counting: Counting
) -> None:
    """Recorded frames overwrite each other's; a frame under way keeps its own."""
    animator = warm(models, device, counting)
    expected = []
    for frame in clip:
        animator.step(frame)
        motion = animator.driving_motion
        assert motion is not None
        expected.append((motion.exp, motion.kp))
    animator.reset()
    for (exp, kp), _ in zip(expected, animator.run(clip, ahead), strict=True):
        motion = animator.driving_motion
        assert motion is not None
        assert torch.equal(motion.exp, exp)
        assert torch.equal(motion.kp, kp)  # type: ignore[arg-type]
    animator.reset()
    left = animator.run(clip, ahead)
    next(left)
    left.close()
    assert torch.equal(animator.driving_motion.exp, expected[0][0])  # type: ignore[union-attr]


@pytest.mark.parametrize("device", DEVICES)
def test_a_frame_that_fails_leaves_the_motion_before_it(
    models: dict[str, LivePortrait],
    device: str,
    clip: list[Frame],
    counting: Counting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flat(*arguments: Any) -> Tensor:
        raise LpkernelsError("keypoints in one plane")

    friendly = MotionOptions(driving_option="expression-friendly")
    animator, reference = (warm(models, device, counting, friendly) for _ in range(2))
    for one in (animator, reference):
        one.step(clip[0])
        one.step(clip[1])
    expected = reference.driving_motion
    animator.set_source(draw_portrait(64, yaw=10))
    with monkeypatch.context() as patch:
        patch.setattr("lpkernels.animate.engine.convex_hull_multiplier", flat)
        with pytest.raises(LpkernelsError, match="one plane"):
            animator.step(clip[3])
    assert torch.equal(animator.driving_motion.exp, expected.exp)  # type: ignore[union-attr]
    assert np.array_equal(animator.step(clip[1]).shape, (64, 64, 3))
