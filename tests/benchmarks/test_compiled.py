"""A compile that fell back is found out."""

from __future__ import annotations

import logging

import pytest
import torch
from torch._dynamo.utils import counters

from benchmarks.compiled import CompileWatch, compile_watched, forget, new_step
from benchmarks.techniques import Techniques
from benchmarks.work import Candidate, Provider
from tests.benchmarks.fakes import FakeClock, double, harness, provider, subject


@pytest.fixture(autouse=True)
def _forget():
    forget()
    yield
    forget()


@torch._dynamo.disable
def refused_by_dynamo(x):
    return double(x)


def left_alone(x):
    """Nothing in here that a graph could be made of."""
    return refused_by_dynamo(x)


def test_a_compiled_function_did_not_fall_back():
    compiled, watch = compile_watched(lambda x: torch.sin(x) + 1, "reduce-overhead", backend="eager")
    new_step(compiled)(torch.ones(3))
    assert watch.fell_back() is None
    assert watch.extras() == {"compiled_graphs": 1, "graph_breaks": 0}


def test_a_function_that_dynamo_leaves_alone_fell_back():
    compiled, watch = compile_watched(left_alone, "reduce-overhead", backend="eager")
    compiled(torch.ones(3))
    assert "ran eagerly" in watch.fell_back()


def test_an_error_that_dynamo_suppressed_is_a_fall_back():
    def failing_backend(graph, inputs):
        raise RuntimeError("no such kernel")

    with torch._dynamo.config.patch(suppress_errors=True):
        compiled, watch = compile_watched(double, "reduce-overhead", backend=failing_backend)
        assert torch.equal(compiled(torch.ones(3)), 2 * torch.ones(3))
    assert "ran eagerly" in watch.fell_back()


def test_graph_breaks_are_counted():
    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    compiled, watch = compile_watched(broken, "reduce-overhead", backend="eager")
    compiled(torch.ones(3))
    assert watch.extras()["graph_breaks"] >= 1
    assert watch.fell_back() is None


def test_skipped_cuda_graphs_are_a_fall_back_with_inductors_reason():
    watch = CompileWatch("reduce-overhead")
    counters["stats"]["unique_graphs"] += 1
    counters["inductor"]["cudagraph_skips"] += 1
    logging.getLogger("torch._inductor.cudagraph_utils").warning("skipping cudagraphs due to mutated inputs")
    assert "mutated inputs" in watch.fell_back()


def test_a_mode_without_cuda_graphs_may_skip_them():
    watch = CompileWatch("max-autotune-no-cudagraphs")
    counters["stats"]["unique_graphs"] += 1
    counters["inductor"]["cudagraph_skips"] += 1
    assert watch.fell_back() is None


def test_the_harness_reports_the_fall_back_without_a_time():
    clock = FakeClock()

    def build():
        compiled, watch = compile_watched(left_alone, "reduce-overhead", backend="eager")
        return Candidate(compiled, watch.fell_back, watch.extras)

    right, fallen = harness(clock).measure(
        subject(provider("right", clock, 1.0), Provider("compile-reduce-overhead", "fp32", build))
    )
    assert (right.status, fallen.status, fallen.median_ms) == ("ok", "fell-back", None)
    assert "ran eagerly" in fallen.reason


def test_compiling_needs_a_gpu():
    from benchmarks.techniques import prepare
    from benchmarks.work import Unavailable

    with pytest.raises(Unavailable, match="CUDA"):
        prepare(torch.nn.Linear(2, 2), Techniques(compile="reduce-overhead"), torch.device("cpu"))
