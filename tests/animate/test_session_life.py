"""Live sessions: how they begin and end, and what they count meanwhile."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lpkernels.animate.session import Session
from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models.config import LivePortraitConfig
from tests.animate.live import SOON, Clock, FakeAnimator, add_up, frame, live_threads

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_a_size_is_warmed_up_before_the_first_frame(make: Any) -> None:
    animator = FakeAnimator()
    make(animator, size=(48, 64))
    assert animator.warmed == [(48, 64)]
    with pytest.raises(InputError):
        Session(FakeAnimator(), size=(0, 4))  # type: ignore[arg-type]


def test_close_finishes_the_frame_under_way_and_drops_the_next(make: Any, clock: Clock) -> None:
    animator = FakeAnimator(clock, takes=1.0, gated=True)
    session = make(animator)
    session.push(frame(0))
    animator.next_begun()
    session.push(frame(1))
    closers = [threading.Thread(target=session.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    while not session.stats().closed:
        time.sleep(0)
    assert session.wait() is None, "who waits is woken"
    animator.gate.release()
    for closer in closers:
        closer.join(SOON)
    session.close()
    stats = session.stats()
    assert (stats.frames_out, stats.dropped, stats.closed, stats.failed) == (1, 1, True, False)
    assert add_up(stats)
    assert session.wait(0).sequence == 0
    assert session.latest().held
    clock.now += 50
    assert session.stats().seconds == stats.seconds, "the time stands still after the end"
    for call in (lambda: session.push(frame(2)), lambda: session.push(None), session.reset):
        with pytest.raises(LpkernelsError, match="closed"):
            call()


def test_a_block_closes() -> None:
    with Session(FakeAnimator()) as session:  # type: ignore[arg-type]
        assert len(live_threads()) == 1
    assert session.stats().closed
    assert live_threads() == []


def test_a_session_that_nobody_holds_ends() -> None:
    session = Session(FakeAnimator())  # type: ignore[arg-type]
    session.push(frame(1))
    del session
    gc.collect()
    assert live_threads() == []


PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from tests.animate.live import FakeAnimator, frame
from lpkernels.animate.session import Session
animator = FakeAnimator(gated=True)
session = Session(animator)
session.push(frame(1))
animator.next_begun()
"""


@pytest.mark.parametrize(
    "end",
    [
        "animator.gate.release(); print(session.wait(10).sequence)",
        # Ctrl-C while close waits for the frame that is animated
        "import _thread, threading\n"
        "threading.Timer(0.2, _thread.interrupt_main).start()\n"
        "threading.Timer(0.6, animator.gate.release).start()\n"
        "try: session.close()\n"
        "except KeyboardInterrupt: print(0)",
    ],
)
def test_a_program_ends_with_a_session_left_open(end: str) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM + end + "\nimport atexit; atexit.register(print, 'end')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\nend\n", "")


def test_counts_add_up_under_many_threads() -> None:
    with Session(FakeAnimator()) as session:  # type: ignore[arg-type]
        seen: list[int] = []
        sums: list[bool] = []
        over = threading.Event()

        def drive() -> None:
            for level in range(100):
                session.push(None if level % 10 == 0 else frame(level), copy=False)

        def look() -> None:
            while not over.is_set():
                if (answer := session.wait(0.01)) is not None:
                    seen.append(answer.sequence)
                sums.append(add_up(session.stats()))

        viewer = threading.Thread(target=look)
        drivers = [threading.Thread(target=drive) for _ in range(4)]
        for thread in (viewer, *drivers):
            thread.start()
        for thread in drivers:
            thread.join(SOON)
        over.set()
        viewer.join(SOON)
    stats = session.stats()
    assert (stats.frames_in, stats.bad) == (400, 40)
    assert stats.waiting == stats.working == 0
    assert add_up(stats)
    assert all(sums)
    assert stats.latency.count == stats.animation.count == stats.frames_out
    assert seen == sorted(set(seen)), "in order, none twice"


def test_latency_counts_from_when_the_frame_was_taken(make: Any, clock: Clock) -> None:
    session = make(FakeAnimator(clock, takes=0.02))
    for level in range(10):
        session.push(frame(level), taken_at=clock.now - 0.01)
        session.wait(SOON)
    stats = session.stats()
    assert stats.latency.max_ms == pytest.approx(30)
    assert stats.animation.max_ms == pytest.approx(20)
    assert stats.latency.p50_ms == pytest.approx(30, rel=0.045)
    assert stats.fps == pytest.approx(50)
    assert stats.seconds == pytest.approx(0.2)
    clock.now += 0.18
    assert session.stats().fps == pytest.approx(25), "the rate falls when frames stop"
