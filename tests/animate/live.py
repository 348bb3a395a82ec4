"""A clock that stands still and an animator that waits to be told, for tests of live sessions."""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np

from lpkernels.animate.image import Frame
from lpkernels.animate.session import SessionStats
from lpkernels.errors import InputError

SOON = 10.0  # seconds: what takes longer is a deadlock


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeAnimator:
    """Gives each driving frame back, one brighter; level 200 and above is what ``errors`` says.

    Attributes:
        source: what is animated; ``step`` writes its first character's code into the picture's last pixel.
        begun: the level of each frame that was begun, in order, with "reset" and sources between them.
        gate: released once for each frame that may end; None: every frame may.
    """

    def __init__(self, clock: Clock | None = None, takes: float = 0.0, gated: bool = False) -> None:
        self.clock, self.takes = clock, takes
        self.source: Any = "A"
        self.model: Any = None
        self.paste_back = False
        self.begun: queue.Queue[Any] = queue.Queue()
        self.gate = threading.Semaphore(0) if gated else None
        self.errors: dict[int, BaseException] = {}
        self.warmed: list[tuple[int, int]] = []

    def step(self, frame: Frame, eye_ratio: float | None = None, lip_ratio: float | None = None) -> Frame:
        level = int(frame[0, 0, 0])
        self.ratios = eye_ratio, lip_ratio
        self.begun.put(level)
        if self.gate is not None:
            assert self.gate.acquire(timeout=SOON)
        if level in self.errors:
            raise self.errors[level]
        if self.clock is not None:
            self.clock.now += self.takes
        picture = frame + np.uint8(1)
        picture[-1, -1] = ord(self.source[0])
        return picture

    def check_source(self, source: Any) -> None: ...

    def set_source(self, source: Any) -> None:
        self.begun.put(source)
        self.source = source

    def reset(self) -> None:
        self.begun.put("reset")

    def warm_up(self, size: tuple[int, int]) -> float:
        if min(size) < 1:
            raise InputError("size")
        self.warmed.append(size)
        return 0.0

    def next_begun(self) -> Any:
        """What was begun next."""
        return self.begun.get(timeout=SOON)


def frame(level: int) -> Frame:
    """A picture of one level."""
    return np.full((4, 6, 3), level, np.uint8)


def live_threads() -> list[threading.Thread]:
    """The threads of sessions and cameras that have not ended."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("lpkernels")]


def add_up(stats: SessionStats) -> bool:
    """Whether no frame is missing or counted twice."""
    return stats.frames_in == stats.frames_out + stats.dropped + stats.bad + stats.waiting + stats.working
