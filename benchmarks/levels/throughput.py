"""Frames per second against batch: one source, many driving frames at once, as a server or an offline job has them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import frame, registry
from benchmarks.context import Context
from benchmarks.levels.frame import subject
from benchmarks.work import Measurement


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Measure the frame at each batch; a measurement's time is that of the whole batch."""
    default = registry.DEFAULT_BATCHES if context.device.type == "cuda" else registry.DEFAULT_BATCHES[:2]
    for batch in context.options.batches or default:
        providers = frame.of_frame(context.model, context.device, every_form=False)
        yield context.harness.measure(subject(context, providers, batch, level="throughput"))
