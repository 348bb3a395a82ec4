"""NVTX ranges in the domain ``lpkernels``, and a recorder that times the same ranges.

Ranges cost one attribute test while nothing listens. They are emitted when a profiler has injected itself into NVTX
(Nsight Systems and Nsight Compute set ``NVTX_INJECTION64_PATH``), when ``LPKERNELS_TRACE=1``, or after ``enable()``.
A range appears in ``torch.profiler`` as well, so one set of names serves both tools.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

DOMAIN = "lpkernels"
CATEGORIES = ("frame", "network", "op")

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_enabled = bool(os.environ.get("NVTX_INJECTION64_PATH")) or os.environ.get("LPKERNELS_TRACE") == "1"
_active = threading.local()  # .recorder: each thread records its own ranges


def enable(on: bool = True) -> None:
    """Emit ranges from now on (or stop), whether or not a profiler is attached."""
    global _enabled
    _enabled = on


def enabled() -> bool:
    """Whether ranges are emitted."""
    return _enabled


@dataclass
class Row:
    """One range name and its wall times in milliseconds."""

    category: str
    name: str
    times_ms: list[float] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return len(self.times_ms)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)

    @property
    def total_ms(self) -> float:
        return sum(self.times_ms)


class Recorder:
    """Wall times of the ranges entered by one thread; made by ``record``."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._rows: dict[tuple[str, str], Row] = {}

    def rows(self) -> list[Row]:
        """One row per range, in the order in which ranges were first entered."""
        return list(self._rows.values())

    def _now_ms(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() * 1e3

    @contextlib.contextmanager
    def _time(self, name: str, category: str) -> Iterator[None]:
        row = self._rows.setdefault((category, name), Row(category, name))
        start = self._now_ms()
        try:
            yield
        finally:
            row.times_ms.append(self._now_ms() - start)


@contextlib.contextmanager
def record(device: torch.device | str = "cpu") -> Iterator[Recorder]:
    """Collect wall times of every range this thread enters inside the block.

    A CUDA ``device`` is synchronised at both edges of each range: the times add up, and the run is slower for it.
    """
    recorder, previous = Recorder(device), getattr(_active, "recorder", None)
    _active.recorder = recorder
    try:
        yield recorder
    finally:
        _active.recorder = previous


def range(name: str, category: str, **payload: object) -> contextlib.AbstractContextManager[None]:  # noqa: A001
    """Context manager for one named range; ``payload`` (batch, shape, ...) is appended to the name in a timeline.

    Does nothing while ``torch.compile`` traces: a compiled graph is one range of whoever calls it.
    """
    if torch.compiler.is_compiling():
        return _NOTHING
    recorder = getattr(_active, "recorder", None)
    if not _enabled and recorder is None:
        return _NOTHING
    return _emit(recorder, name, category, payload)


@contextlib.contextmanager
def _emit(recorder: Recorder | None, name: str, category: str, payload: dict[str, object]) -> Iterator[None]:
    if category not in CATEGORIES:
        raise ValueError(f"category must be one of {', '.join(CATEGORIES)}, got {category!r}")
    with contextlib.ExitStack() as stack:
        if _enabled:
            message = " ".join([name, *(f"{key}={value}" for key, value in payload.items())])
            stack.enter_context(_annotate(message, category))
            stack.enter_context(torch.profiler.record_function(f"{DOMAIN}::{category}::{message}"))
        if recorder is not None:
            stack.enter_context(recorder._time(name, category))
        yield


def _annotate(message: str, category: str) -> contextlib.AbstractContextManager[object]:
    try:
        import nvtx
    except ModuleNotFoundError:  # torch.profiler still gets the range
        return _NOTHING
    return nvtx.annotate(message, domain=DOMAIN, category=category, color=_COLORS[category])


_COLORS = {"frame": "green", "network": "blue", "op": "orange"}
