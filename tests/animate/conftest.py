"""What the tests of live sessions share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lpkernels.animate.session import Session
from tests.animate.live import Clock, FakeAnimator, live_threads


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """Every thread that a test began has ended with it."""
    assert live_threads() == []
    yield
    assert live_threads() == []


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def make(clock: Clock, no_thread_is_left: None) -> Iterator[Callable[..., Session]]:
    """Makes sessions with a fake animator, which are closed at the end."""
    sessions: list[Session] = []

    def one(animator: FakeAnimator, **options: Any) -> Session:
        sessions.append(Session(animator, clock=clock, **options))  # type: ignore[arg-type]
        return sessions[-1]

    yield one
    for session in sessions:
        session.close()
