"""The harness: slower is slower, wrong is refused, fallen back is called so, and nobody is timed alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks import harness as harness_module
from benchmarks.harness import Effort, count_flops, strict_fp32
from benchmarks.work import Candidate, Provider, Unavailable, relative_error
from tests.benchmarks.fakes import CPU, FakeClock, double, harness, provider, subject


def test_a_slower_provider_is_reported_slower():
    clock = FakeClock()
    fast, slow = harness(clock).measure(subject(provider("fast", clock, 1.0), provider("slow", clock, 3.0)))
    assert (fast.status, slow.status) == ("ok", "ok")
    assert fast.median_ms == pytest.approx(1.0)
    assert slow.median_ms == pytest.approx(3.0)
    assert slow.p20_ms == pytest.approx(3.0)
    assert slow.warmup_ms == pytest.approx([3.0] * 10)
    assert slow.samples == 12
    assert slow.gbps == pytest.approx(16 * 4 / 3.0 / 1e6)


@pytest.mark.parametrize(
    "wrong", [lambda x: 2.001 * x, lambda x: x * math.nan, lambda x: double(x)[:4], lambda x: None]
)
def test_a_wrong_provider_is_refused_and_its_time_is_gone(wrong):
    clock = FakeClock()
    right, refused = harness(clock).measure(
        subject(provider("right", clock, 5.0), provider("wrong", clock, 0.1, wrong))
    )
    assert right.status == "ok"
    assert refused.status == "refused"
    assert "exceeds" in refused.reason
    assert [refused.median_ms, refused.p20_ms, refused.p80_ms, refused.p99_ms] == [None] * 4
    assert refused.warmup_ms == []


def test_a_provider_that_repeats_its_first_answer_is_refused():
    clock, kept = FakeClock(), []

    def stale(x):
        kept.append(double(x))
        return kept[0]

    (result,) = harness(clock).measure(subject(provider("stale", clock, 1.0, stale)))
    assert result.status == "refused"


@pytest.mark.parametrize("when", [0, 1])
def test_a_fallen_back_provider_is_called_so(when):
    clock, asked = FakeClock(), []

    def fell_back():
        asked.append(None)
        return "ran eagerly" if len(asked) > when else None

    (result,) = harness(clock).measure(subject(provider("compiled", clock, 1.0, fell_back=fell_back)))
    assert (result.status, result.reason, result.median_ms) == ("fell-back", "ran eagerly", None)


def test_a_provider_that_cannot_run_is_skipped_with_its_reason():
    def unavailable():
        raise Unavailable("needs a GPU")

    def broken():
        raise RuntimeError("\nfirst line\nsecond line")

    providers = Provider("a", "fp32", unavailable), Provider("b", "fp32", broken)
    first, second = harness(FakeClock()).measure(subject(*providers))
    assert (first.status, first.reason) == ("skipped", "needs a GPU")
    assert (second.status, second.reason) == ("skipped", "RuntimeError: first line")


def test_a_provider_that_breaks_while_timed_does_not_end_the_others():
    clock, count = FakeClock(), []

    def breaks(x):
        count.append(None)
        if len(count) > 15:
            raise RuntimeError("out of memory")
        return double(x)

    good, bad = harness(clock).measure(subject(provider("good", clock, 1.0), provider("bad", clock, 1.0, breaks)))
    assert good.status == "ok"
    assert (bad.status, bad.median_ms) == ("skipped", None)
    assert "out of memory" in bad.reason


def test_providers_are_timed_in_turn():
    clock, calls = FakeClock(), []
    names = ["A", "B", "C"]
    harness(clock, rounds=4).measure(subject(*(provider(name, clock, 1.0, calls=calls) for name in names)))
    assert calls[-12:] == names * 4


def test_pytorchs_own_half_precision_sets_the_tolerance():
    clock = FakeClock()
    own = provider("own", clock, 1.0, lambda x: 2.004 * x, precision="fp16", yardstick=True)
    near = provider("near", clock, 1.0, lambda x: 2.005 * x, precision="fp16")
    far = provider("far", clock, 1.0, lambda x: 2.008 * x, precision="fp16")
    results = harness(clock).measure(subject(own, near, far))
    assert [one.status for one in results] == ["ok", "ok", "refused"]
    assert results[0].tolerance == pytest.approx(1.5 * 0.002, rel=1e-3)


def test_a_broken_yardstick_loosens_nothing():
    clock = FakeClock()
    own = provider("own", clock, 1.0, lambda x: 3 * x, precision="fp16", yardstick=True)
    wrong = provider("wrong", clock, 1.0, lambda x: 2.9 * x, precision="fp16")
    results = harness(clock).measure(subject(own, wrong))
    assert [one.status for one in results] == ["refused", "refused"]


def test_each_precision_has_its_own_yardstick():
    clock = FakeClock()
    half = provider("half", clock, 1.0, lambda x: 2.004 * x, precision="fp16", yardstick=True)
    bfloat = provider("bfloat", clock, 1.0, lambda x: 2.04 * x, precision="bf16", yardstick=True)
    near = provider("near", clock, 1.0, lambda x: 2.05 * x, precision="bf16")
    results = harness(clock).measure(subject(half, bfloat, near, replace(near, name="far", precision="fp16")))
    assert [one.status for one in results] == ["ok", "ok", "ok", "refused"]


def test_pytorch_with_other_kernels_is_shown_with_its_error_and_loosens_nothing():
    clock = FakeClock()
    other = provider("other", clock, 1.0, lambda x: 2.02 * x, precision="fp16", eager_pytorch=True)
    ours = provider("ours", clock, 1.0, lambda x: 2.02 * x, precision="fp16")
    broken = provider("broken", clock, 1.0, lambda x: 3 * x, precision="fp16", eager_pytorch=True)
    results = harness(clock).measure(subject(other, ours, broken))
    assert [one.status for one in results] == ["ok", "refused", "refused"]


def test_a_yardstick_counts_though_it_is_not_asked_for():
    clock = FakeClock()
    own = provider("own", clock, 1.0, lambda x: 2.008 * x, precision="fp16", yardstick=True)
    other = provider("other", clock, 1.0, lambda x: 2.008 * x, precision="fp16")
    (result,) = harness(clock, selected=lambda name: name == "other").measure(subject(own, other))
    assert (result.provider, result.status) == ("other", "ok")


def test_a_yardstick_not_asked_for_only_answers():
    clock, calls = FakeClock(), []
    fields = {"precision": "fp16", "yardstick": True, "calls": calls}
    own = provider("own", clock, 1.0, lambda x: 2.008 * x, **fields)
    brief = provider("brief", clock, 1.0, answer=lambda x: 2.008 * x, **fields)
    other = provider("other", clock, 1.0, lambda x: 2.008 * x, precision="fp16")
    for yardstick, expected in ((own, ["own"] * 2), (brief, [])):
        (result,) = harness(clock, selected=lambda name: name == "other").measure(subject(yardstick, other))
        assert calls == expected
        assert result.status == "ok"
        assert result.tolerance == pytest.approx(1.5 * 0.004, rel=1e-3)
        calls.clear()


def test_a_yardstick_that_is_asked_for_is_measured_by_its_whole_call():
    clock, calls = FakeClock(), []
    fields = {"precision": "fp16", "yardstick": True, "calls": calls, "answer": lambda x: 3 * x}
    (result,) = harness(clock).measure(subject(provider("own", clock, 1.0, **fields)))
    assert (result.status, result.median_ms) == ("ok", pytest.approx(1.0))
    assert result.relative_error == 0.0
    assert len(calls) == 10 + 2 + 1 + 12  # warm-up, compared, made ready, timed


@pytest.mark.parametrize("asked_for", ["*", "other"])
def test_a_yardstick_that_fell_back_loosens_nothing(asked_for):
    clock = FakeClock()
    fields = {"precision": "fp16", "yardstick": True, "fell_back": lambda: "ran eagerly"}
    own = provider("own", clock, 1.0, lambda x: 2.008 * x, **fields)
    other = provider("other", clock, 1.0, lambda x: 2.008 * x, precision="fp16")
    results = harness(clock, selected=lambda name: asked_for in ("*", name)).measure(subject(own, other))
    assert (results[-1].provider, results[-1].status) == ("other", "refused")


def test_without_inputs_an_answer_is_compared_once():
    calls = []
    work = subject(
        Provider("job", "fp32", lambda: Candidate(lambda: calls.append(None) or torch.ones(2))),
        inputs=lambda seed: (),
        reference=lambda: torch.ones(2),
    )
    (result,) = harness(FakeClock(), effort=Effort(0.0, 3, 3, warmup=2)).measure(work)
    assert len(calls) == 2 + 1 + 1 + 3  # warm-up, compared, made ready, timed
    assert result.relative_error == 0.0


def test_slow_first_calls_end_the_warm_up_early_but_not_before_two():
    clock = FakeClock()
    impatient = harness(clock, effort=Effort(seconds=0.0, min_rounds=1, max_rounds=1, patience=2.5))
    slow, fast = impatient.measure(subject(provider("slow", clock, 2000.0), provider("fast", clock, 1.0)))
    assert len(slow.warmup_ms) == 3
    assert len(fast.warmup_ms) == 10


def test_a_drifting_provider_is_noticed():
    clock = FakeClock()

    def slower_and_slower(x):
        clock.advance(clock.seconds * 0.1)
        return double(x)

    (result,) = harness(clock).measure(subject(provider("hot", clock, 1.0, slower_and_slower)))
    assert result.drift > 0.5


def test_flops_are_counted_on_the_reference():
    matrix = torch.randn(16, 4)
    work = subject(
        Provider("product", "fp32", lambda: Candidate(lambda x: x @ matrix)),
        inputs=lambda seed: (torch.randn(8, 16),),
        reference=lambda x: x @ matrix,
        flops=None,
    )
    (result,) = harness(FakeClock(), rounds=1).measure(work)
    assert result.flops == 2 * 8 * 16 * 4


def test_only_what_is_compared_has_to_be_right():
    clock = FakeClock()
    partial = provider("partial", clock, 1.0, lambda x: {"out": 2 * x})
    both = {"reference": lambda x: {"out": 2 * x, "map": x}, "compared": lambda answer: answer["out"]}
    assert harness(clock).measure(subject(partial, **both))[0].status == "ok"
    wrong = provider("wrong", clock, 1.0, lambda x: {"out": 3 * x, "map": x})
    assert harness(clock).measure(subject(wrong, **both))[0].status == "refused"


def test_the_error_is_the_worst_of_all_outputs():
    truth = {"a": torch.ones(4), "b": torch.ones(2)}
    assert relative_error({"a": torch.ones(4), "b": torch.tensor([1.0, 1.5])}, truth) == pytest.approx(0.5 / 2**0.5)
    assert relative_error({"a": torch.ones(4)}, truth) == math.inf


def test_strict_fp32_puts_the_switches_back():
    before = torch.backends.cudnn.allow_tf32
    with strict_fp32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_counting_sees_convolutions():
    with count_flops() as counted:
        torch.nn.functional.conv2d(torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3))
    assert counted() == 2 * 3 * 3 * 2 * 3 * 9


def test_memory_is_unknown_on_the_cpu():
    assert harness_module.Memory(CPU).grown() == (None, None)
