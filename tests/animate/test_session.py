"""Live sessions: the newest frame and no other, and every frame counted."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch

import lpkernels
from lpkernels.animate.session import Session
from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models.config import LivePortraitConfig
from tests.animate.live import SOON, Clock, FakeAnimator, add_up, frame

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_public_name() -> None:
    assert lpkernels.Session is Session


def test_a_picture_knows_when_it_was_made(make: Any, clock: Clock) -> None:
    session = make(FakeAnimator(clock, takes=0.02), source_name="me")
    assert session.latest() is None
    assert session.push(frame(7), taken_at=99.9) == 0
    answer = session.wait(SOON)
    assert (answer.sequence, answer.source, answer.held) == (0, "me", False)
    assert answer.picture[0, 0].tolist() == [8, 8, 8]
    assert (answer.taken_at, answer.started_at, answer.finished_at) == (99.9, 100.0, 100.02)
    assert answer.age == pytest.approx(0.12)
    clock.now = 105.0
    assert session.latest().age == pytest.approx(5.1)


def test_a_frame_is_taken_when_it_is_pushed_unless_told(make: Any, clock: Clock) -> None:
    session = make(FakeAnimator())
    clock.now = 123.0
    session.push(frame(1))
    assert session.wait(SOON).taken_at == 123.0


def test_never_more_than_one_frame_behind(make: Any) -> None:
    animator = FakeAnimator(gated=True)
    session = make(animator)
    session.push(frame(0))
    assert animator.next_begun() == 0
    assert [session.push(frame(level)) for level in (1, 2, 3)] == [1, 2, 3]
    stats = session.stats()
    assert (stats.frames_in, stats.dropped, stats.waiting, stats.working, stats.frames_out) == (4, 2, 1, 1, 0)
    animator.gate.release()
    assert animator.next_begun() == 3, "1 and 2 were stale"
    assert session.wait(SOON).sequence == 0
    animator.gate.release()
    assert session.wait(SOON).sequence == 3
    stats = session.stats()
    assert (stats.frames_out, stats.dropped, stats.waiting, stats.working) == (2, 2, 0, 0)
    assert add_up(stats)


def test_a_pushed_array_may_be_overwritten(make: Any) -> None:
    animator = FakeAnimator(gated=True)
    session = make(animator)
    session.push(frame(0))
    animator.next_begun()
    picture = frame(5)
    session.push(picture)
    picture[:] = 90
    animator.gate.release(2)
    assert animator.next_begun() == 5


def test_a_frame_is_not_copied_when_told(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    animator, seen = FakeAnimator(), []
    monkeypatch.setattr(animator, "step", lambda frame, *ratios: seen.append(frame) or frame.copy())
    session, picture = make(animator), frame(5)
    session.push(picture, copy=False)
    session.wait(SOON)
    assert seen[0] is picture


def test_ratios_reach_the_animator(make: Any) -> None:
    animator = FakeAnimator()
    session = make(animator)
    session.push(frame(1), eye_ratio=0.3, lip_ratio=0.1)
    session.wait(SOON)
    assert animator.ratios == (0.3, 0.1)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (None, "NoneType"),
        ([[1, 2, 3]], "list"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "Tensor"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), np.uint8), "(4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), "one pixel"),
    ],
)
def test_what_is_no_picture_is_counted_and_the_last_good_one_stays(make: Any, bad: Any, word: str) -> None:
    session = make(FakeAnimator())
    session.push(frame(1))
    good = session.wait(SOON)
    assert session.push(bad) == 1
    stats = session.stats()
    assert (stats.bad, stats.frames_in, stats.failed) == (1, 2, False)
    assert word in stats.last_error
    assert session.latest().picture is good.picture
    session.push(frame(2))
    assert session.wait(SOON).sequence == 2
    assert add_up(session.stats())


def test_a_frame_that_the_animator_refuses_is_bad(make: Any) -> None:
    animator = FakeAnimator()
    animator.errors[200] = InputError("eye_ratio is missing")
    session = make(animator)
    session.push(frame(1))
    session.wait(SOON)
    session.push(frame(200))
    while animator.next_begun() != 200:
        pass
    session.push(frame(3))
    assert session.wait(SOON).sequence == 2
    stats = session.stats()
    assert (stats.bad, stats.frames_out, stats.last_error) == (1, 2, "eye_ratio is missing")
    assert add_up(stats)


def test_a_fatal_error_reaches_everybody(make: Any) -> None:
    animator = FakeAnimator(gated=True)
    animator.errors[200] = RuntimeError("CUDA error: an illegal memory access was encountered")
    session = make(animator)
    failures: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(LpkernelsError) as failure:
            session.wait()
        failures.append(failure.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    session.push(frame(200))
    animator.next_begun()
    session.push(frame(1))
    animator.gate.release()
    waiting.join(SOON)
    assert "live session failed: RuntimeError: CUDA error: an illegal memory access" in str(failures[0])
    assert failures[0].__cause__ is animator.errors[200]
    for call in (lambda: session.push(frame(2)), session.latest, session.reset, lambda: session.push(None)):
        with pytest.raises(LpkernelsError, match="illegal memory access"):
            call()
    session.close()
    stats = session.stats()
    assert stats.failed
    assert stats.closed
    assert (stats.frames_in, stats.bad, stats.dropped) == (2, 1, 1)
    assert "CUDA error" in stats.last_error
    assert add_up(stats)


def test_held_counts_pictures_given_again(make: Any) -> None:
    session = make(FakeAnimator())
    session.push(frame(1))
    first = session.wait(SOON)
    assert not first.held
    assert [session.latest().held for _ in range(3)] == [True] * 3
    assert session.stats().held == 3
    session.push(frame(2))
    assert session.wait(SOON).sequence == 1
    assert session.stats().held == 3


def test_wait_gives_no_picture_twice(make: Any) -> None:
    session = make(FakeAnimator())
    assert session.wait(0) is None
    session.push(frame(1))
    assert session.wait(SOON).sequence == 0
    assert session.wait(0) is None
    assert session.wait(0, after=-1).held, "whoever has not seen it may ask"
    assert session.wait(0, after=0) is None
    assert session.stats().held == 0


def test_two_that_wait_both_see_a_picture(make: Any) -> None:
    animator = FakeAnimator(gated=True)
    session, seen = make(animator), []
    viewers = [threading.Thread(target=lambda: seen.append(session.wait(SOON, after=-1).sequence)) for _ in range(2)]
    for viewer in viewers:
        viewer.start()
    session.push(frame(1))
    animator.gate.release()
    for viewer in viewers:
        viewer.join(SOON)
    assert seen == [0, 0]
