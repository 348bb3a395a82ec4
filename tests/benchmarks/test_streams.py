"""Streams on a clock of our own: the queue, the limit, the answer."""

from __future__ import annotations

import pytest
import torch

from benchmarks.context import Context, Options
from benchmarks.levels import streams as level
from benchmarks.levels.streams import LIMIT_MS, Clock, delays, hold
from benchmarks.work import Candidate, Provider
from tests.benchmarks.fakes import CPU, FakeClock


def clocked(milliseconds):
    clock = FakeClock()
    return (lambda stream: clock.advance(milliseconds / 1e3)), Clock(clock.now, clock.advance)


@pytest.mark.parametrize(("milliseconds", "streams"), [(30.0, 1), (10.0, 3), (4.0, 8), (2.0, 16), (1.2, 27)])
def test_as_many_streams_as_there_is_time_for(milliseconds, streams):
    step, clock = clocked(milliseconds)
    held, delay = hold(step, 2.0, clock)
    assert held == pytest.approx(streams, abs=1)
    assert delay < LIMIT_MS


def test_a_step_that_is_too_slow_holds_none():
    step, clock = clocked(50.0)
    held, delay = hold(step, 2.0, clock)
    assert held == 0
    assert delay > LIMIT_MS


def test_one_stream_is_delayed_by_the_step_alone():
    step, clock = clocked(5.0)
    found = delays(step, 1, 1.0, clock)
    assert found == pytest.approx([0.005] * len(found))
    assert len(found) == pytest.approx(30, abs=2)


def test_frames_that_arrive_together_wait_for_each_other():
    step, clock = clocked(15.0)
    assert max(delays(step, 2, 1.0, clock)) < 0.031
    assert max(delays(step, 3, 1.0, clock)) > 0.1


def test_a_lost_queue_ends_the_trial():
    step, clock = clocked(300.0)
    assert len(delays(step, 4, 100.0, clock)) < 20


def test_streams_that_there_is_no_memory_for_are_not_held():
    step, clock = clocked(2.0)
    asked = []

    def make_ready(streams):
        asked.append(streams)
        if streams > 5:
            raise torch.OutOfMemoryError

    assert hold(step, 1.0, clock, make_ready)[0] == 5
    assert max(asked) > 5


def test_every_stream_has_its_own_animator(monkeypatch):
    """Each stream's frames go to the same call, and no two streams share one."""
    served = []

    def call(index):
        return lambda frames: served.append(index)

    made = [0]

    def another():
        made.append(len(made))
        return call(made[-1])

    def held(step, seconds, make_ready):
        make_ready(3)
        served.clear()
        for stream in (0, 2, 1, 0):
            step(stream)
        return 3, 1.0

    monkeypatch.setattr(level, "hold", held)
    provider = Provider("own", "fp32", lambda: Candidate(call(0), another=another))
    candidate = level._with_streams(provider, Context(Options(CPU, "tiny"))).build()
    assert candidate.extras() == {"streams": 3, "p99_delay_ms": 1.0}
    assert served == [0, 2, 1, 0]
    alone = Provider("baseline", "fp32", lambda: Candidate(call(7)))
    level._with_streams(alone, Context(Options(CPU, "tiny"))).build().extras()
    assert served == [7] * 4
