"""Recording of CUDA graphs: what is said and left behind when it fails. On a GPU: ``test_engine_gpu``."""

from __future__ import annotations

import pytest

from lpkernels import trace
from lpkernels.animate import _graph
from lpkernels.errors import LpkernelsError


class FakeGraph:
    """What ``_capture`` calls of a CUDA graph."""

    def __init__(self, spoilt: bool = False) -> None:
        self.spoilt, self.ended = spoilt, False

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"

    def capture_end(self) -> None:
        self.ended = True
        if self.spoilt:
            raise RuntimeError("capture was invalidated")


@pytest.mark.parametrize("spoilt", [True, False])
@pytest.mark.parametrize("error", [ValueError("a wait\nfor the device"), KeyboardInterrupt()])
def test_a_capture_that_fails_says_why(spoilt: bool, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned: list[object] = []
    monkeypatch.setattr(_graph, "_abandon", lambda graph, pool: abandoned.append(graph))

    def run() -> None:
        raise error

    graph = FakeGraph(spoilt)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - which one is asserted below
        _graph._capture(graph, (0, 1), run)  # type: ignore[arg-type]
    if isinstance(error, Exception):
        assert isinstance(caught.value, LpkernelsError)
        assert "ValueError: a wait; Animator(..., graph=False) runs without" in str(caught.value)
        assert caught.value.__cause__ is error
    else:
        assert caught.value is error
    assert graph.ended
    assert abandoned == ([graph] if spoilt else [])


def test_a_capture_that_ends_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned: list[object] = []
    monkeypatch.setattr(_graph, "_abandon", lambda graph, pool: abandoned.append(graph))
    graph = FakeGraph(spoilt=True)
    with pytest.raises(LpkernelsError, match="RuntimeError: capture was invalidated"):
        _graph._capture(graph, (0, 1), lambda: None)  # type: ignore[arg-type]
    assert abandoned == [graph]
    _graph._capture(FakeGraph(), (0, 1), lambda: None)  # type: ignore[arg-type]


def test_ranges_are_not_timed_while_recording() -> None:
    with trace.record() as recorder:
        with _graph._unrecorded(), trace.range("inside", "op"):
            pass
        with trace.range("outside", "op"):
            pass
    assert [row.name for row in recorder.rows()] == ["outside"]
