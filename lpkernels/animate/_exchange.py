"""What a live session's threads share: the newest driving frame, the newest picture, and the counts, under one lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from lpkernels.animate._files import reason
from lpkernels.animate._live_stats import Counts, SessionStats
from lpkernels.animate.image import Frame
from lpkernels.animate.source import Source
from lpkernels.errors import LpkernelsError


@dataclass(frozen=True, eq=False)
class Given:
    """A driving frame as it was pushed; times in seconds of the session's clock."""

    sequence: int
    frame: Frame
    taken_at: float
    eye_ratio: float | None = None
    lip_ratio: float | None = None


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """An animated frame of a session; times in seconds of the session's clock.

    Attributes:
        picture: uint8 (S, S, 3), RGB; shared by all who ask for it, so not to be written to.
        sequence: number of the driving frame that it was made from, counted from 0 over all that were pushed.
        source: name of the source that it shows.
        taken_at, started_at, finished_at: when the driving frame was taken, its turn came, and the picture was done.
        age: time since ``taken_at`` when the picture was handed out.
        held: whether it was handed out before.
    """

    picture: Frame
    sequence: int
    source: str
    taken_at: float
    started_at: float
    finished_at: float
    age: float = 0.0
    held: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """What a worker does next, in this order; each may be absent."""

    source: tuple[str, Source] | None
    reset: bool
    given: Given | None


class Exchange:
    """One place for a driving frame, one for a picture; a newer one takes the place of an older.

    Every method may be called from any thread and returns at once, except ``take`` and ``wait``.
    """

    def __init__(self, clock: Callable[[], float], source: str) -> None:
        self._clock = clock
        self._began = clock()
        lock = threading.Lock()
        self._task_there, self._answer_there = threading.Condition(lock), threading.Condition(lock)
        self._waiting: Given | None = None
        self._working = False
        self._switch: tuple[str, Source] | None = None
        self._reset = False
        self._newest: LiveFrame | None = None
        self._handed_out = -1
        self._counts = Counts()
        self._source = source
        self._last_error: str | None = None
        self._failure: BaseException | None = None
        self._ended_at: float | None = None

    def now(self) -> float:
        """The clock's time."""
        return self._clock()

    # The side of those who drive.

    def put(self, frame: Frame, taken_at: float | None, eye_ratio: float | None, lip_ratio: float | None) -> int:
        """Leave a driving frame for the worker and return its number; one that still waits is dropped."""
        with self._task_there:
            self._check_open()
            sequence = self._number()
            if self._waiting is not None:
                self._counts.dropped += 1
            taken_at = self._clock() if taken_at is None else taken_at
            self._waiting = Given(sequence, frame, taken_at, eye_ratio, lip_ratio)
            self._task_there.notify()
            return sequence

    def refuse(self, error: BaseException) -> int:
        """Count a driving frame that is no picture, and return its number."""
        with self._task_there:
            self._check_open()
            self._spoilt(error)
            return self._number()

    def switch(self, name: str, source: Source) -> None:
        """Have another source animated from the next frame that is begun."""
        with self._task_there:
            self._check_open()
            self._switch = (name, source)
            self._task_there.notify()

    def reset(self) -> None:
        """Have the next frame that is begun be the reference."""
        with self._task_there:
            self._check_open()
            self._reset = True
            self._task_there.notify()

    # The worker's side.

    def take(self) -> Task | None:
        """Wait for something to do; None: nothing more will come."""
        with self._task_there:
            while not (self._closed or self._waiting or self._switch or self._reset):
                self._task_there.wait()
            if self._closed:
                return None
            task = Task(self._switch, self._reset, self._waiting)
            self._working = self._waiting is not None
            self._waiting, self._switch, self._reset = None, None, False
            if task.source is not None:
                self._source = task.source[0]
            return task

    def give(self, given: Given, picture: Frame, started_at: float) -> None:
        """Leave a finished picture for those who look."""
        with self._answer_there:
            now = self._clock()
            self._newest = LiveFrame(picture, given.sequence, self._source, given.taken_at, started_at, now)
            self._working = False
            self._counts.frames_out += 1
            self._counts.rate.add(now)
            self._counts.latency.add(now - given.taken_at)
            self._counts.animation.add(now - started_at)
            self._answer_there.notify_all()

    def spoil(self, error: BaseException) -> None:
        """The frame that was taken could not be animated; the newest picture stays."""
        with self._answer_there:
            self._working = False
            self._spoilt(error)

    def fail(self, error: BaseException) -> None:
        """The worker cannot go on."""
        with self._answer_there:
            if self._working:
                self._counts.bad += 1
            self._working = False
            self._failure, self._last_error = error, _line(error)
            self._end()

    # The side of those who look.

    def newest(self) -> LiveFrame | None:
        """The newest picture, the same as often as it is asked for; None before the first."""
        with self._answer_there:
            self._check_alive()
            if self._newest is None:
                return None
            frame = self._hand_out(self._newest)
            self._counts.held += frame.held
            return frame

    def wait(self, timeout: float | None, after: int | None) -> LiveFrame | None:
        """Wait for a picture newer than number ``after`` (None: than all handed out); None: too late, or the end."""
        with self._answer_there:
            last = self._handed_out if after is None else after
            self._answer_there.wait_for(lambda: self._closed or self._newer(last), timeout)
            self._check_alive()
            return self._hand_out(self._newest) if self._newest is not None and self._newer(last) else None

    def stats(self) -> SessionStats:
        """Counts and times so far."""
        with self._answer_there:
            now, counts = self._clock() if self._ended_at is None else self._ended_at, self._counts
            return SessionStats(
                frames_in=counts.frames_in,
                frames_out=counts.frames_out,
                dropped=counts.dropped,
                bad=counts.bad,
                held=counts.held,
                waiting=int(self._waiting is not None),
                working=int(self._working),
                seconds=now - self._began,
                fps=counts.rate.at(now),
                latency=counts.latency.summary(),
                animation=counts.animation.summary(),
                source=self._source,
                last_error=self._last_error,
                failed=self._failure is not None,
                closed=self._closed,
            )

    def close(self) -> None:
        """Wake everybody; nothing more is taken. A frame that still waits is dropped."""
        with self._answer_there:
            self._end()

    @property
    def _closed(self) -> bool:
        return self._ended_at is not None

    def _end(self) -> None:
        if self._ended_at is None:
            self._ended_at = self._clock()
        if self._waiting is not None:
            self._counts.dropped += 1
            self._waiting = None
        self._switch, self._reset = None, False
        self._task_there.notify_all()
        self._answer_there.notify_all()

    def _hand_out(self, frame: LiveFrame) -> LiveFrame:
        held = frame.sequence <= self._handed_out
        self._handed_out = max(self._handed_out, frame.sequence)
        return replace(frame, age=self._clock() - frame.taken_at, held=held)

    def _newer(self, sequence: int) -> bool:
        return self._newest is not None and self._newest.sequence > sequence

    def _number(self) -> int:
        self._counts.frames_in += 1
        return self._counts.frames_in - 1

    def _spoilt(self, error: BaseException) -> None:
        self._counts.bad += 1
        self._last_error = _line(error)

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise LpkernelsError(f"the live session failed: {_line(self._failure)}") from self._failure

    def _check_open(self) -> None:
        self._check_alive()
        if self._closed:
            raise LpkernelsError("the live session is closed; it takes nothing more")


def _line(error: BaseException) -> str:
    text = reason(error)
    return text if isinstance(error, LpkernelsError | ValueError | TypeError) else f"{type(error).__name__}: {text}"
