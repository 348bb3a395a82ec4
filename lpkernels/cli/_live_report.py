"""What a live run says about itself: a status line while it runs, a summary, a JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernels.errors import LpkernelsError

if TYPE_CHECKING:
    import torch

    from lpkernels.animate.session import SessionStats

_SETTLED = 30  # pictures after which memory should no longer grow


class Status:
    """Prints a line about the session every second on a terminal, every ten into a log; nothing when ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._terminal = sys.stderr.isatty()
        self._period = 1.0 if self._terminal else 10.0
        self._quiet, self._due, self._width = quiet, self._period, 0

    def tick(self, stats: SessionStats) -> None:
        """Print, if it is time."""
        if self._quiet or stats.seconds < self._due:
            return
        self._due = stats.seconds + self._period
        line = status_line(stats)
        self._width = max(self._width, len(line))
        print(
            f"\r{line:<{self._width}}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr
        )
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line that is rewritten."""
        if self._terminal and self._width:
            print(file=sys.stderr)
            self._width = 0


def status_line(stats: SessionStats) -> str:
    """One short line: the rate, the delay, what was left out."""
    bad = f"  bad {stats.bad}" if stats.bad else ""
    delay = f"latency p50 {stats.latency.p50_ms:.1f} ms  p99 {stats.latency.p99_ms:.1f} ms"
    return f"{stats.seconds:6.0f} s  {stats.fps:5.1f} fps  {delay}  dropped {stats.dropped}{bad}"


def summary(stats: SessionStats, ended: str) -> str:
    """The whole run in a few lines."""
    rate = stats.frames_out / stats.seconds if stats.seconds > 0 else 0.0
    delay, own = stats.latency, stats.animation
    lines = [
        f"{stats.seconds:.1f} s, {ended}",
        f"frames     {stats.frames_in} in, {stats.frames_out} out ({rate:.1f} a second), "
        f"{stats.dropped} dropped, {stats.bad} bad",
    ]
    for name, times in (("latency", delay), ("animation", own)):
        quantiles = f"p50 {times.p50_ms:.1f}  p90 {times.p90_ms:.1f}  p99 {times.p99_ms:.1f}  max {times.max_ms:.1f} ms"
        lines.append(f"{name:<11}{quantiles}")
    if stats.last_error is not None:
        lines.append(f"last error {stats.last_error}")
    return "\n".join(lines)


class Memory:
    """The process's memory and the GPU's, once settled, at the end and at most; None where it cannot be read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seen: dict[str, dict[str, float]] = {}

    def look(self, stats: SessionStats) -> None:
        """Take note, from the time on when the first pictures are done."""
        if stats.frames_out < _SETTLED:
            return
        for name, value in (("host_mib", host_mib()), ("gpu_mib", _gpu_mib(self._device))):
            if value is not None:
                seen = self._seen.setdefault(name, {"settled": value, "end": value, "max": value})
                seen["end"], seen["max"] = value, max(seen["max"], value)

    def report(self) -> dict[str, Any]:
        """Name -> MiB ``settled``, at the ``end``, and ``max``; None for what was not seen."""
        return {name: self._seen.get(name) for name in ("host_mib", "gpu_mib")}


def write_report(path: Path, facts: dict[str, Any], stats: SessionStats, memory: Memory) -> None:
    """Write what is known about a run as JSON; the file appears when it is complete."""
    from lpkernels.animate._files import reason, replacing

    record = {**facts, "stats": dataclasses.asdict(stats), "memory": memory.report()}
    with replacing(path) as temporary:
        try:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise LpkernelsError(f"cannot write {path}: {reason(error)}") from None


def host_mib() -> float | None:
    """Resident memory of this process in MiB; None where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _gpu_mib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    import torch

    return round(torch.cuda.memory_reserved(device) / 2**20, 1)
