"""Graphs with static buffers, and the cache of sources: with a recorder that keeps buffers as a CUDA graph would."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lpkernels
from lpkernels.errors import LpkernelsError
from lpkernels.integrations import _graphs, _source_cache
from lpkernels.integrations._graphs import Frames, Outputs
from lpkernels.integrations._source_cache import SourceCache
from tests.fused.networks import keypoints, relative_error, volume
from tests.integrations import programs

CPU = torch.device("cpu")


class Recorder:
    """Records as a graph does: what a run leaves keeps its address, and a replay writes there."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        frame = run.__closure__
        assert frame is not None
        owner = next(cell.cell_contents for cell in frame if isinstance(cell.cell_contents, _graphs._Frame))
        run()
        static = list(owner._outputs)

        def replay() -> None:
            run()
            for buffer, value in zip(static, owner._outputs, strict=True):
                buffer.copy_(value)
            owner._outputs = static

        return replay


def doubled(first: Tensor, second: Tensor) -> Outputs:
    return [first + second, first * second]


def take(outputs: Outputs, borrowed: bool) -> list[Tensor]:
    return [value.clone() if borrowed else value for value in outputs]


def test_answers_belong_to_the_caller_and_shapes_have_their_frames() -> None:
    record = Recorder()
    frames = Frames(doubled, CPU, None, record=record)
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    first = frames([a, b], take)
    second = frames([b, b], take)
    assert first[0].tolist() == [4, 6]
    assert second[0].tolist() == [6, 8]
    assert record.recorded == 1
    assert frames([a[:1], b[:1]], take)[1].tolist() == [3]
    assert frames([a.double(), b.double()], take)[0].dtype == torch.float64
    assert record.recorded == 3
    a.fill_(10)
    assert frames([a, b], take)[0].tolist() == [13, 14], "inputs may be written in place"


def test_constant_inputs_are_copied_when_another_comes() -> None:
    frames = Frames(doubled, CPU, None, constant=1, record=Recorder())
    a, b = torch.ones(2), torch.ones(2)
    frames([a, b], take)
    a.fill_(5)  # against the rule, to see that it is not copied
    assert frames([a, b], take)[0].tolist() == [2, 2]
    assert frames([a.clone(), b], take)[0].tolist() == [6, 6]


def test_the_least_recently_used_shape_makes_room() -> None:
    record = Recorder()
    frames = Frames(doubled, CPU, None, record=record)
    sizes = range(1, _graphs.FRAMES + 2)
    for size in sizes:
        frames([torch.ones(size), torch.ones(size)], take)
    frames([torch.ones(2), torch.ones(2)], take)
    assert record.recorded == len(sizes)
    frames([torch.ones(1), torch.ones(1)], take)
    assert record.recorded == len(sizes) + 1


def test_buffers_made_in_inference_mode_serve_outside() -> None:
    frames = Frames(doubled, CPU, None, record=Recorder())
    with torch.inference_mode():
        assert frames([torch.ones(2), torch.ones(2)], take)[0].is_inference()
    answer = frames([torch.zeros(2), torch.ones(2)], take)[0]
    assert answer.tolist() == [1, 1]
    assert not answer.is_inference()


def refuse(run: Callable[[], None]) -> Callable[[], None]:
    raise LpkernelsError("of the recorder") from RuntimeError("a wait\nfor the device")


def test_what_cannot_be_recorded_runs_without_and_says_so_once(recwarn: pytest.WarningsRecorder) -> None:
    frames = Frames(doubled, CPU, None, record=refuse)
    for _ in range(2):
        assert frames([torch.ones(2), torch.ones(2)], take)[0].tolist() == [2, 2]
    (warning,) = recwarn.list
    assert str(warning.message) == (
        "lpkernels: a network cannot be recorded as a CUDA graph: RuntimeError: a wait; it runs without from now on"
    )
    assert not frames.records


def test_what_must_be_recorded_and_cannot_be_is_an_error() -> None:
    frames = Frames(doubled, CPU, True, record=refuse)
    with pytest.raises(LpkernelsError, match=r"RuntimeError: a wait; accelerate\(..., graph=False\) runs without"):
        frames([torch.ones(2), torch.ones(2)], take)


def test_inside_a_callers_capture_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    record, cache = Recorder(), SourceCache(lambda feature: object())  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(_graphs, "capturing", lambda: True)
    monkeypatch.setattr(_source_cache, "capturing", lambda: True)
    Frames(doubled, CPU, None, record=record)([torch.ones(2), torch.ones(2)], take)
    feature = torch.ones(2)
    assert cache(feature) is not cache(feature)
    assert record.recorded == 0


def test_threads_do_not_mix_their_answers() -> None:
    frames = Frames(doubled, CPU, None, record=Recorder())
    wrong: list[Any] = []

    def work(value: float) -> None:
        for _ in range(50):
            answer = frames([torch.full((64,), value), torch.full((64,), value)], take)
            if not (answer[0] == 2 * value).all() or not (answer[1] == value * value).all():
                wrong.append(answer)

    threads = [threading.Thread(target=work, args=(float(value),)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_recorded_wrapper_answers_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """All networks through the buffers of frames, sources changing."""
    wrapper = programs.wrapper()
    before = [programs.frame(wrapper, seed) for seed in (0, 1, 0)]
    own = Frames.__init__

    def recorded(self: Frames, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **{**kwargs, "record": Recorder()})

    monkeypatch.setattr(Frames, "__init__", recorded)
    report = lpkernels.accelerate(wrapper, "fp32")
    assert [part.note for part in report.parts if part.replaced] == ["fp32", *["fp32, CUDA graphs"] * 3]
    for seed, expected in zip((0, 1, 0), before, strict=True):
        answer = programs.frame(wrapper, seed)
        for name, value in expected.items():
            assert relative_error(answer[name], value) < 1e-5, name


@pytest.fixture
def counted() -> tuple[SourceCache, list[Tensor]]:
    """A cache, and what it prepared."""
    prepared: list[Tensor] = []

    def prepare(feature: Tensor) -> Any:
        prepared.append(feature.clone())
        return object()

    return SourceCache(prepare), prepared


def test_a_source_is_prepared_once(counted: tuple[SourceCache, list[Tensor]]) -> None:
    cache, prepared = counted
    features = [torch.ones(2), torch.zeros(2)]
    sources = [cache(feature) for feature in features]
    assert [cache(feature) for feature in features * 2] == sources * 2
    assert len(prepared) == 2


def test_a_source_that_was_written_to_is_prepared_again(counted: tuple[SourceCache, list[Tensor]]) -> None:
    cache, prepared = counted
    feature = torch.ones(2)
    for write in (lambda: feature.add_(1), lambda: feature[:1].zero_(), lambda: feature.detach().mul_(2)):
        cache(feature)
        write()
        cache(feature)
        assert torch.equal(prepared[-1], feature)
    assert len(prepared) == 4
    feature.data = torch.full((2,), 9.0)
    cache(feature)
    assert prepared[-1].tolist() == [9, 9]
    assert len(cache) == 1


def test_an_equal_tensor_is_another_source(counted: tuple[SourceCache, list[Tensor]]) -> None:
    cache, prepared = counted
    feature = torch.ones(2)
    cache(feature)
    cache(feature.clone())
    cache(feature.view(2))
    assert len(prepared) == 3


def test_sources_are_let_go(counted: tuple[SourceCache, list[Tensor]]) -> None:
    cache, _ = counted
    kept = [torch.ones(1) for _ in range(_source_cache.SOURCES + 2)]
    for feature in kept:
        cache(feature)
    assert len(cache) == _source_cache.SOURCES
    kept.clear()
    del feature
    gc.collect()
    cache(torch.ones(1))
    assert len(cache) == 1


def test_tensors_of_inference_mode_are_not_trusted(counted: tuple[SourceCache, list[Tensor]]) -> None:
    cache, prepared = counted
    with torch.inference_mode():
        feature = torch.ones(2)
        cache(feature)
        feature.zero_()
        cache(feature)
    assert [tensor.tolist() for tensor in prepared] == [[1, 1], [0, 0]]


def test_the_warping_network_prepares_a_source_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, feature = programs.network("warping_module"), volume()
    lpkernels.accelerate(network)
    replacement = vars(network)["forward"]._lpkernels_patch.replacement
    calls: list[Tensor] = []
    prepare = replacement._sources._prepare
    monkeypatch.setattr(replacement._sources, "_prepare", lambda x: calls.append(x) or prepare(x))
    source, driving = keypoints()
    answers = [network(feature, kp_driving=kp, kp_source=source)["out"] for kp in (driving, source, driving)]
    assert len(calls) == 1
    assert torch.equal(answers[0], answers[2])
    network(feature, kp_driving=driving, kp_source=driving)
    assert len(calls) == 1, "other source keypoints need no other source"
    feature.mul_(2)
    assert not torch.equal(network(feature, kp_driving=driving, kp_source=source)["out"], answers[0])
    assert len(calls) == 2
