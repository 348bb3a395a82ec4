"""Streams on a clock of our own: the queue, the limit, the answer."""

from __future__ import annotations

import pytest

from benchmarks.levels.streams import LIMIT_MS, Clock, delays, hold
from tests.benchmarks.fakes import FakeClock


def clocked(milliseconds):
    clock = FakeClock()
    return (lambda: clock.advance(milliseconds / 1e3)), Clock(clock.now, clock.advance)


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
