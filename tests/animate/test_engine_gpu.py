"""The engine on a GPU: graphs bit for bit, copies beside the computation, threads, no waits, failures."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from lpkernels import trace
from lpkernels.animate._lane import Lane
from lpkernels.animate._plan import FramePlan
from lpkernels.animate.animator import Animator
from lpkernels.animate.engine import PLANS
from lpkernels.animate.extract import extract_template
from lpkernels.animate.image import Frame
from lpkernels.animate.motion import Motion
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions
from lpkernels.errors import LpkernelsError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait

pytestmark = pytest.mark.gpu

SOURCE, OTHER = draw_portrait(64), draw_portrait(64, yaw=10)
CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
FRIENDLY = MotionOptions(driving_option="expression-friendly")


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return list(driving_frames(6, 64))


@pytest.fixture(scope="module")
def gpu_model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG, device="cuda", dtype=torch.float16)


def captures(animator: Animator) -> int:
    return animator._engine.captures


@pytest.mark.parametrize("options", [MotionOptions(), MotionOptions(relative=False), FRIENDLY])
def test_graphs_are_the_eager_path_bit_for_bit(
    gpu_model: LivePortrait, clip: list[Frame], options: MotionOptions
) -> None:
    animators = [Animator(gpu_model, SOURCE, options=options, graph=graph) for graph in (None, False)]
    assert [animator._engine.records for animator in animators] == [True, False]
    for frame in (*clip, clip[0][:40, :50]):
        graph, eager = (animator.step(frame) for animator in animators)
        assert np.array_equal(graph, eager)
    assert [captures(animator) for animator in animators] == [2, 0]
    for animator in animators:
        animator.reset()
    on_device = torch.from_numpy(np.stack(clip[:3])).cuda()
    graph, eager = (animator.step_batch(on_device) for animator in animators)
    assert torch.equal(graph, eager)


def test_runs_are_the_steps(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(gpu_model, SOURCE)
    steps = [animator.step(frame) for frame in clip]
    for ahead in (None, 0, 1, 7):
        animator.reset()
        assert all(map(np.array_equal, animator.run(iter(clip), ahead), steps))
    animator.reset()
    tensors = list(animator.run([torch.from_numpy(frame).cuda() for frame in clip]))
    assert all(np.array_equal(one.cpu().numpy(), other) for one, other in zip(tensors, steps, strict=True))
    assert captures(animator) == 1
    template = extract_template(gpu_model, iter(clip), 25)
    replayed = list(animator.run_template(template))
    assert all(np.abs(one.astype(int) - other).max() <= 3 for one, other in zip(replayed, steps, strict=True))
    assert captures(animator) == 2


def test_a_source_changes_without_a_capture(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    animator, reference = Animator(gpu_model, SOURCE), Animator(gpu_model, OTHER)
    animator.step(clip[0])
    reference.step(clip[0])
    for _ in range(2):
        animator.set_source(OTHER)
        assert np.array_equal(animator.step(clip[2]), reference.step(clip[2]))
    assert captures(animator) == 1


def test_nothing_waits_for_the_device(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(gpu_model, SOURCE)
    tensor = torch.from_numpy(clip[0]).cuda()
    animator.step(tensor)
    animator.step(clip[0])
    motion = animator.driving_motion
    assert motion is not None
    animator.step_motion(motion)
    torch.cuda.set_sync_debug_mode("error")
    try:
        animator.reset()  # the first frame of a clip, too
        for _ in range(3):
            animator.step(tensor)
            animator.step(clip[1])
            animator.step_motion(motion)
        list(animator.run(clip))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_returns_before_the_device_is_done(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(gpu_model, SOURCE)
    tensor = torch.from_numpy(clip[0]).cuda()
    expected = animator.step(tensor).clone()
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # a tenth of a second on the caller's stream, before the frame
    start = time.perf_counter()
    result = animator.step(tensor)
    assert time.perf_counter() - start < 0.05
    assert torch.equal(result, expected)


def test_threads_on_a_gpu(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    expected = [list(Animator(gpu_model, source).run(clip)) for source in (SOURCE, OTHER)]
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            animator = Animator(gpu_model, (SOURCE, OTHER)[index % 2])  # captures while others run
            for _ in range(5):
                animator.reset()
                assert all(map(np.array_equal, animator.run(clip), expected[index % 2]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.parametrize("graph", [None, False])
def test_a_caller_changes_streams_between_frames(
    gpu_model: LivePortrait, clip: list[Frame], graph: bool | None
) -> None:
    def answers(animator: Animator, streams: list[torch.cuda.Stream]) -> Iterator[Tensor | Frame | Motion | None]:
        """A stream for each frame, busy before it; what a frame was given is overwritten after it."""
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(4_000_000)
                given = torch.from_numpy(clip[index % 6]).cuda(non_blocking=True)
                yield animator.step(given)
                given.zero_()
                if index % 4 == 1:
                    yield animator.driving_motion
                if index % 5 == 2:
                    yield animator.step(clip[index % 6])
                if index % 5 == 3:
                    animator.set_source((SOURCE, OTHER)[index % 2])
                if index % 7 == 6:
                    animator.reset()

    made = [torch.cuda.Stream() for _ in range(3)]
    random = np.random.default_rng(0)
    changing = [made[index] for index in random.integers(0, 3, 20)]
    torch.cuda.synchronize()
    expected = list(answers(Animator(gpu_model, SOURCE), [torch.cuda.current_stream()] * 20))
    animator = Animator(gpu_model, SOURCE, graph=graph)
    for stream in made:
        stream.wait_stream(torch.cuda.current_stream())
    found = list(answers(animator, changing))
    torch.cuda.synchronize()
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, Motion) and isinstance(other, Motion):
            one, other = one.exp, other.exp
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_threads_with_streams_of_their_own(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    frames = [torch.from_numpy(frame).cuda() for frame in clip]
    expected = [[Animator(gpu_model, source).step(frame) for frame in frames[:1]] for source in (SOURCE, OTHER)]
    torch.cuda.synchronize()
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            animator = Animator(gpu_model, (SOURCE, OTHER)[index])
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(20):
                    animator.reset()
                    answer = animator.step(frames[0])
                    for frame in frames[1:]:
                        animator.step(frame)
                    assert torch.equal(answer, expected[index][0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_animator_is_dropped_while_its_frame_runs(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    frame = torch.from_numpy(clip[1]).cuda()
    animator = Animator(gpu_model, SOURCE)
    animator.step(torch.from_numpy(clip[0]).cuda())
    expected = animator.step(frame).clone()
    own = animator._engine.lane.stream
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)  # the frame's kernels come after everything below
    result = animator.step(frame)
    del animator
    with torch.cuda.stream(own):
        junk = [
            torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in [512 * 2**n for n in range(16)] * 4
        ]
    torch.cuda.synchronize()
    assert torch.equal(result, expected)
    assert len(junk) == 64


def test_frames_on_one_stream_wait_for_no_other(
    gpu_model: LivePortrait, clip: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = []
    order = Lane._order
    monkeypatch.setattr(Lane, "_order", lambda lane, *streams: changes.append(streams) or order(lane, *streams))
    animator, frame = Animator(gpu_model, SOURCE), torch.from_numpy(clip[0]).cuda()
    animator.step(frame)
    changes.clear()
    for _ in range(3):
        animator.step(frame)
    assert changes == []
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        animator.step(frame)
    animator.step(clip[0])
    assert len(changes) == 2


def test_a_capture_that_fails_on_a_gpu_and_the_next(
    gpu_model: LivePortrait, clip: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Animator(gpu_model, SOURCE).step(clip[0])
    animator = Animator(gpu_model, SOURCE)
    draw = FramePlan.draw

    def waiting(self: FramePlan) -> None:
        draw(self)
        self.output.sum().item()

    with monkeypatch.context() as patch:
        patch.setattr(FramePlan, "draw", waiting)
        for _ in range(2):
            with pytest.raises(LpkernelsError, match=r"cannot be recorded as a CUDA graph.*graph=False"):
                animator.step(clip[0])
        assert np.array_equal(Animator(gpu_model, SOURCE, graph=False).step(clip[0]), expected)
    assert captures(animator) == 0
    assert torch.rand(8, device="cuda").isfinite().all()
    assert np.array_equal(animator.step(clip[0]), expected)
    assert captures(animator) == 1


def test_copies_overlap_with_the_computation(gpu_model: LivePortrait) -> None:
    rng = np.random.default_rng(0)
    frames = list(rng.integers(0, 256, (4, 2160, 3840, 3), dtype=np.uint8)) * 8  # 25 MB each: half a millisecond up
    animator = Animator(gpu_model, SOURCE)

    def seconds(ahead: int) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in animator.run(frames, ahead):
                pass
            times.append(time.perf_counter() - start)
        return min(times)

    seconds(2)
    assert seconds(2) < 0.95 * seconds(0)


def test_the_slowest_frames_are_near_the_median(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(gpu_model, SOURCE)
    tensors = itertools.cycle([torch.from_numpy(frame).cuda() for frame in clip])
    times = []
    for _ in range(600):
        start = time.perf_counter()
        animator.step(next(tensors))
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    median, p99 = np.quantile(times[100:], (0.5, 0.99))
    assert p99 < 2 * median + 5e-4


def test_memory_stays_when_runs_are_left_early_and_sizes_change(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(gpu_model, SOURCE)

    def round_trip() -> int:
        for side in range(20, 20 + PLANS + 2):
            results = animator.run([frame[:side, :side] for frame in clip])
            next(results)
            results.close()
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    round_trip()
    before = round_trip()
    for _ in range(3):
        round_trip()
    assert round_trip() <= before + 2**24


def test_ranges_may_be_timed_while_a_graph_is_recorded(gpu_model: LivePortrait, clip: list[Frame]) -> None:
    with trace.record("cuda") as recorder:
        Animator(gpu_model, SOURCE).step(clip[0])
    calls = {(row.category, row.name): row.calls for row in recorder.rows()}
    assert calls["frame", "frame"] == 1
