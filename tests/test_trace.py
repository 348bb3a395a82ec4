"""trace: silent by default, NVTX and profiler ranges when asked, recorded times, nothing under torch.compile."""

from __future__ import annotations

import time

import pytest
import torch

from lpkernels import trace


@pytest.fixture
def emitting() -> object:
    before = trace.enabled()
    trace.enable()
    yield
    trace.enable(before)


def test_silent_by_default() -> None:
    if trace.enabled():
        pytest.skip("a profiler is attached")
    assert trace.range("a", "op") is trace.range("b", "frame")


def test_recorder_collects_nested_ranges() -> None:
    with trace.record() as recorder:
        for _ in range(3):
            with trace.range("frame", "frame"), trace.range("W", "network", batch=1):
                time.sleep(0.002)
    frame, network = recorder.rows()
    assert (frame.category, frame.name, frame.calls) == ("frame", "frame", 3)
    assert (network.category, network.name) == ("network", "W")
    assert network.median_ms >= 2
    assert frame.total_ms >= network.total_ms


def test_recorders_nest_and_restore() -> None:
    with trace.record() as outer:
        with trace.record() as inner, trace.range("x", "op"):
            pass
        with trace.range("y", "op"):
            pass
    assert [row.name for row in inner.rows()] == ["x"]
    assert [row.name for row in outer.rows()] == ["y"]


def test_exception_leaves_the_range() -> None:
    with trace.record() as recorder, pytest.raises(KeyError), trace.range("x", "op"):
        raise KeyError("x")
    assert recorder.rows()[0].calls == 1


def test_unknown_category_is_refused() -> None:
    with (
        trace.record(),
        pytest.raises(ValueError, match="category must be one of frame, network, op"),
        trace.range("x", "y"),
    ):
        pass


@pytest.mark.usefixtures("emitting")
def test_ranges_reach_the_profiler() -> None:
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        trace.range("f", "op", batch=2),
    ):
        torch.ones(3).sum()
    assert "lpkernels::op::f batch=2" in {event.name for event in profile.events()}


@pytest.mark.usefixtures("emitting")
def test_nothing_under_compile() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        with trace.range("f", "op"):
            return x + 1

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
