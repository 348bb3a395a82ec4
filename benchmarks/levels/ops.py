"""Each op on the shapes LivePortrait gives it, timed as a kernel."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import registry
from benchmarks.context import Context
from benchmarks.work import Measurement


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Measure every op of ``benchmarks/ops``."""
    for subject in registry.op_subjects(context):
        yield context.harness.measure(subject)
