"""Run recorded op calls again: under a profiler, or to see what the real inputs cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Effort, one_line
from benchmarks.tables import Table, milliseconds
from benchmarks.timing import quantile, sampler_for
from lpkernels import capture, ops, trace
from lpkernels.errors import InputError


def replay(folder: Path, device: torch.device, seconds: float = 1.0) -> Table:
    """Call every recorded op again for about ``seconds`` each, inside a range that names its file; a table of times."""
    rows = []
    known = ops.registry()
    for recorded in capture.load(folder, device):
        if recorded.op not in known:
            raise InputError(f"{recorded.path}: expected an op out of {', '.join(sorted(known))}, got {recorded.op!r}")
        shapes = " ".join("x".join(map(str, value.shape)) for value in recorded.arguments if hasattr(value, "shape"))
        rows.append([recorded.op, recorded.path.stem, *_times(recorded, device, seconds), shapes])
    return Table(["op", "call", "median", "p20", "p80", "shapes"], rows)


def _times(recorded: capture.Capture, device: torch.device, seconds: float) -> list[str]:
    function: Any = getattr(ops, recorded.op)
    sampler = sampler_for(device, kernel=True)

    def call(*arguments: Any) -> Any:
        with trace.range(recorded.path.stem, "op"):
            return function(*arguments)

    try:
        with torch.no_grad():
            sample = sampler.prepare(call, [recorded.arguments])
            sample(0)
            effort, times = Effort(seconds=seconds), [sample(0)]
            while len(times) < effort.max_rounds and (len(times) < 5 or sum(times) < seconds * 1e3):
                times.append(sample(0))
    except Exception as error:  # one call that cannot run here must not hide the others
        return [one_line(error), "", ""]
    return [milliseconds(quantile(times, part)) for part in (0.5, 0.2, 0.8)]
