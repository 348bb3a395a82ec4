"""Long runs of the optimized model: frames in a row, threads that share it, a live session. ``--subjects`` chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.context import Context
from benchmarks.endurance import PROVIDER, Case, failed, in_a_row
from benchmarks.endurance_soak import soak
from benchmarks.endurance_threads import together
from benchmarks.work import Measurement

FRAMES = {"cuda": 10_000, "cpu": 8}
SOAK_SECONDS = {"cuda": 600.0, "cpu": 3.0}
PARTS = ("frames", "threads", "soak")


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Each part that is asked for; a picture that changes, or an error, refuses the part's times and says why."""
    kind, options = context.device.type, context.options
    provider = PROVIDER[kind]
    wanted = [part for part in PARTS if options.wants(part)]
    if not options.selected(provider) or not wanted:
        return
    count = options.frames or FRAMES[kind]
    seconds = options.soak_seconds or SOAK_SECONDS[kind]
    runs: dict[str, Callable[[Case], Measurement]] = {
        "frames": lambda case: in_a_row(case, count),
        "threads": lambda case: together(case, count),
        "soak": lambda case: soak(case, seconds),
    }
    case = Case.of(context, provider)
    for part in wanted:
        context.progress(f"endurance: {part}")
        try:
            result = runs[part](case)
        except Exception as error:  # a part that breaks must not end the others
            result = failed(case.measurement(part, "did not end"), error)
        yield [result]
