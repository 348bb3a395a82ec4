"""What a live session counts and times, in fixed memory."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

_SHORTEST, _LONGEST = 1e-6, 1e4  # seconds; what lies outside counts as the nearest
_STEPS = 16  # bins in a doubling: a quantile is at most 4.4 % too high
_BINS = math.ceil(math.log2(_LONGEST / _SHORTEST) * _STEPS) + 1


@dataclass(frozen=True)
class Latency:
    """A summary of times, in milliseconds; zeros where nothing was timed.

    Quantiles are read from a histogram and at most 4.4 % too high; mean and maximum are exact.
    """

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class SessionStats:
    """Counts and times of a live session since it began.

    ``frames_in == frames_out + dropped + bad + waiting + working`` at any moment.

    Attributes:
        frames_in: driving frames pushed.
        frames_out: frames animated.
        dropped: driving frames that a newer one replaced before their turn came, or that the end left over.
        bad: driving frames that could not be animated, those that are no pictures among them.
        held: times that ``latest`` gave a picture that had been handed out before, for want of a newer one.
        waiting, working: driving frames that wait for their turn, and that are being animated: 0 or 1 each.
        seconds: that the session has lasted.
        fps: animated frames a second, over the latest 64.
        latency: from the moment a driving frame was taken to its finished picture.
        animation: the part of it that the animator took.
        source: name of the source that is animated.
        last_error: what was wrong with the latest bad frame, or why the session failed; None: nothing so far.
        failed: whether an error ended the session.
        closed: whether it has ended, for whatever reason.
    """

    frames_in: int
    frames_out: int
    dropped: int
    bad: int
    held: int
    waiting: int
    working: int
    seconds: float
    fps: float
    latency: Latency
    animation: Latency
    source: str
    last_error: str | None
    failed: bool
    closed: bool


class Histogram:
    """Counts times in bins whose widths grow with the time: as much memory after a million as after one."""

    def __init__(self) -> None:
        self._bins = [0] * _BINS
        self._count = 0
        self._sum = self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one time; what is negative counts as zero."""
        seconds = max(seconds, 0.0)
        place = math.ceil(math.log2(max(seconds, _SHORTEST) / _SHORTEST) * _STEPS)
        self._bins[min(place, _BINS - 1)] += 1
        self._count += 1
        self._sum += seconds
        self._longest = max(self._longest, seconds)

    def quantile(self, share: float) -> float:
        """The time in seconds that ``share`` of the times, at least one, do not exceed; 0 before the first."""
        wanted = max(math.ceil(share * self._count), 1)
        for place, count in enumerate(self._bins):
            wanted -= count
            if wanted <= 0:
                return min(_SHORTEST * 2 ** (place / _STEPS), self._longest)
        return 0.0

    def summary(self) -> Latency:
        """Count, mean, quantiles and maximum."""
        mean = self._sum / self._count if self._count else 0.0
        quantiles = (self.quantile(share) for share in (0.5, 0.9, 0.99))
        return Latency(self._count, *(1e3 * seconds for seconds in (mean, *quantiles, self._longest)))


class Rate:
    """Events a second over the latest ``window`` of them; it falls when they stop coming."""

    def __init__(self, window: int = 64) -> None:
        self._times: deque[float] = deque(maxlen=window)

    def add(self, now: float) -> None:
        """Count an event."""
        self._times.append(now)

    def at(self, now: float) -> float:
        """Events a second; 0 before the second event."""
        if len(self._times) < 2:
            return 0.0
        passed = max(now - self._times[0], self._times[-1] - self._times[0])
        return (len(self._times) - 1) / passed if passed > 0 else 0.0


@dataclass
class Counts:
    """What ``SessionStats`` is made from."""

    frames_in: int = 0
    frames_out: int = 0
    dropped: int = 0
    bad: int = 0
    held: int = 0
    rate: Rate = field(default_factory=Rate)
    latency: Histogram = field(default_factory=Histogram)
    animation: Histogram = field(default_factory=Histogram)
