"""The order of an engine's work on streams that are made believe. On a GPU: ``test_engine_gpu``."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lpkernels.animate import _jobs, _lane, engine
from lpkernels.animate._jobs import Jobs
from lpkernels.animate._lane import Lane
from lpkernels.animate._plan import FramePlan
from lpkernels.animate.animator import Animator
from lpkernels.animate.engine import FrameEngine
from lpkernels.animate.image import Frame
from lpkernels.animate.motion import Motion
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.source import prepare_source
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.animate.streams import Races, Streams

SOURCE, OTHER = draw_portrait(64), draw_portrait(64, yaw=10)
CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
FRIENDLY = MotionOptions(driving_option="expression-friendly")


class OnDevice(Tensor):
    """A tensor that says it is on the model's device, where the model is on the CPU."""

    is_cpu = False


class Copies:
    """``PinnedCopies`` without page-locked memory."""

    def __init__(self, streams: Streams, lane: Lane) -> None:
        self._streams, self._lane = streams, lane

    def upload(self, frames: Frame, into: Tensor, alone: bool = False) -> None:
        assert self._streams.current is self._lane.stream
        into.copy_(torch.from_numpy(frames.copy()))

    def download(self, images: Tensor, alone: bool = False) -> Any:
        assert self._streams.current is self._lane.stream
        copy = images.clone().numpy()
        return SimpleNamespace(result=lambda: copy)


def same_memory(run: Callable[[], None]) -> Callable[[], None]:
    """A recording whose replays write into the memory of the first run."""
    plan: FramePlan = run.__self__  # type: ignore[attr-defined]
    run()
    kept = {name: getattr(plan, name) for name in ("heads", "motion", "output")}

    @torch.no_grad()
    def replay() -> None:
        run()
        for name, tensor in kept.items():
            if getattr(plan, name) is not tensor:
                setattr(plan, name, tensor.copy_(getattr(plan, name)))

    return replay


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return list(driving_frames(6, 64))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """What lanes take for CUDA's."""
    streams = Streams()
    monkeypatch.setattr(_lane, "torch", SimpleNamespace(cuda=streams))
    monkeypatch.setattr(_jobs.PasteBack, "tensors", lambda paste: [])  # CPU memory is not recorded on a stream
    return streams


def on_streams(model: LivePortrait, streams: Streams, recorded: bool = True, paste_back: bool = False) -> Animator:
    """An animator on the CPU whose lane believes that it is on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Lane", lambda device: Lane(torch.device("cuda", 0)))
        patch.setattr(_jobs, "make_copies", lambda lane: Copies(streams, lane))
        animator = Animator(model, SOURCE, graph=False, paste_back=paste_back)
        if recorded:
            animator._engine = FrameEngine(model, animator.options, animator.source, record=same_memory)
            animator._jobs = Jobs(animator._engine, CONFIG.output_size)
            animator._jobs.paste_into(animator.source.paste if paste_back else None)
    return animator


def on_device(frames: list[Frame]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).clone().as_subclass(OnDevice)


def moved(motion: Motion) -> Motion:
    return dataclasses.replace(motion, exp=motion.exp.as_subclass(OnDevice))


class Script:
    """A caller who does one thing or another; answers are read on the stream that is current then."""

    def __init__(self, animator: Animator, clip: list[Frame]) -> None:
        self._animator, self._clip = animator, clip
        self._sources = itertools.cycle([OTHER, SOURCE])

    def tensor(self) -> Any:
        frames = on_device(self._clip[1:2])
        answer = self._animator.step(frames[0])
        frames.zero_()  # the caller's again
        return answer.clone()

    def tensors(self) -> Any:
        return self._animator.step_batch(on_device(self._clip[2:4])).clone()

    def tensors_ahead(self) -> Any:
        return [answer.clone() for answer in self._animator.run(list(on_device(self._clip[:3])), 1)]

    def array(self) -> Any:
        return self._animator.step(self._clip[3])

    def host_tensor(self) -> Any:
        return self._animator.step(torch.from_numpy(self._clip[4])).clone()

    def arrays_ahead(self) -> Any:
        return list(self._animator.run(self._clip[:4], 2))

    def left_early(self) -> Any:
        answers = self._animator.run(self._clip[:4], 2)
        first = next(answers)
        answers.close()
        return first

    def motion(self) -> Any:
        motion = self._animator.driving_motion
        return None if motion is None else motion.exp.clone()

    def motion_again(self) -> Any:
        motion = self._animator.driving_motion
        return None if motion is None else self._animator.step_motion(moved(motion)).clone()

    def motion_to_host(self) -> Any:
        motion = self._animator.driving_motion
        return None if motion is None else self._animator._finish(self._animator._start_motion(moved(motion), True))

    def source(self) -> None:
        source = prepare_source(self._animator.model, next(self._sources), None, self._animator.paste_back)
        self._animator.set_source(source)
        source.feature_3d.zero_()  # the caller's again

    def options(self) -> None:
        self._animator.options = FRIENDLY if self._animator.options == MotionOptions() else MotionOptions()

    def reset(self) -> None:
        self._animator.reset()


ACTIONS = [name for name in vars(Script) if not name.startswith("_")]


@pytest.mark.parametrize(("recorded", "paste_back", "seed"), [(True, False, 0), (True, True, 1), (False, True, 2)])
def test_nothing_races_whatever_streams_a_caller_takes(
    model: LivePortrait, clip: list[Frame], streams: Streams, recorded: bool, paste_back: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    callers = [streams.current, *(streams.Stream() for _ in range(2))]
    reference = Script(Animator(model, SOURCE, paste_back=paste_back), clip)
    races = Races(streams)
    with races:
        script = Script(on_streams(model, streams, recorded, paste_back), clip)
    for name in ["tensor", *random.permutation(ACTIONS * 2)]:
        # A motion that was handed out is the caller's, to be used where it was made.
        caller = callers[0 if name.startswith("motion") else random.integers(3)]
        with races, streams.stream(caller):
            answer = getattr(script, name)()
        assert races.found == [], name
        for one, other in zip(listed(answer), listed(getattr(reference, name)()), strict=True):
            assert np.array_equal(one, other), name


def test_a_lane_that_does_not_wait_races(
    model: LivePortrait, clip: list[Frame], streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Races(streams) as races:
        script = Script(on_streams(model, streams), clip)
        script.tensor()
        monkeypatch.setattr(Lane, "_order", lambda lane, first, then: None)
        with streams.stream(streams.Stream()):
            script.tensor()
    assert "copy_" in {name.partition(".")[0] for name in races.found}


def test_frames_on_one_stream_record_and_enter_nothing(
    model: LivePortrait, clip: list[Frame], streams: Streams
) -> None:
    script = Script(on_streams(model, streams), clip)
    script.tensor()
    script.motion()
    streams.events = streams.entered = 0
    for _ in range(3):
        script.tensor()
        script.motion()
    assert (streams.events, streams.entered) == (0, 0)
    with streams.stream(streams.Stream()):
        script.tensor()
    script.tensor()
    assert (streams.events, streams.entered) == (2, 1)  # one for each change
    for _ in range(3):
        script.array()
    assert streams.events == 3


@pytest.mark.parametrize(("owner", "held"), [("_engine", "_buffers"), ("_jobs", "_canvas")])
def test_memory_is_dropped_once_the_lane_has_settled(
    model: LivePortrait, streams: Streams, owner: str, held: str
) -> None:
    class Memory:
        pass

    animator = on_streams(model, streams)
    other = animator._engine
    if owner == "_engine":  # by itself: jobs would settle, too
        del animator._jobs, other
    lane, frame = animator._engine.lane, streams.Stream()
    with streams.stream(frame), lane.here():
        frame.clock[frame.number] = 1
    own: Any = lane.stream
    waited: list[int | None] = []
    memory = Memory()
    weakref.finalize(memory, lambda: waited.append(own.clock.get(frame.number)))
    setattr(getattr(animator, owner), held, memory)
    del memory
    del animator
    assert waited == [1]


def listed(answer: Any) -> list[Frame]:
    """An answer's arrays."""
    answers = answer if isinstance(answer, list) else [answer]
    return [np.asarray(one.detach() if isinstance(one, Tensor) else one) for one in answers if one is not None]
