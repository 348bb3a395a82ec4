"""A run: the levels in turn within the budget, saved after every subject, printed at the end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceilings, compiled, environment, records, registry
from benchmarks.context import Context, Options
from benchmarks.records import Records, Run
from benchmarks.work import Unavailable
from lpkernels.errors import InputError


@dataclass
class Outcome:
    """What a run leaves: all records, the index of this run in them, and the levels that are incomplete."""

    records: Records
    run: int
    unreached: dict[str, str]  # level -> why it was not measured, or not to its end
    seconds: float


def run(
    levels: Sequence[str],
    options: Options,
    path: Path,
    *,
    append: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Measure ``levels`` and keep the records at ``path``; ``append`` adds to those already there.

    Raises InputError for an unknown level, or if what is at ``path`` is of another machine or model.
    """
    if unknown := [level for level in levels if level not in registry.LEVELS]:
        raise InputError(f"bench: expected levels out of {', '.join(registry.LEVELS)}, got {unknown[0]!r}")
    kept = records.load(path) if append and path.exists() else Records()
    started = time.monotonic()
    progress("ceilings")
    this = kept.add_run(
        Run(environment.describe(options.device), ceilings.measure(options.device), options.config, _arguments(options))
    )
    unreached: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(options, progress, Path(folder), started)
        for level in levels:
            if reason := _measure(level, context, kept, this, path):
                unreached[level] = reason
    kept.runs[this].environment |= _clocks_after(options.device)
    records.save(kept, path)
    return Outcome(kept, this, unreached, time.monotonic() - started)


def _measure(level: str, context: Context, kept: Records, this: int, path: Path) -> str | None:
    """Run one level; why it is incomplete, or None."""
    ended = f"the budget of {context.options.budget} s was spent"
    if context.remaining() <= 0:
        return ended
    context.progress(level)
    try:
        for measurements in registry.measure(level)(context):
            kept.put(measurements, this)
            records.save(kept, path)
            compiled.forget()
            if context.device.type == "cuda":
                torch.cuda.empty_cache()
            if context.remaining() <= 0:
                return ended
    except Unavailable as reason:
        return str(reason)
    return None


def _clocks_after(device: torch.device) -> dict[str, str]:
    """The clocks once more: a card that throttled shows it here."""
    if device.type != "cuda":
        return {}
    return {f"{name}_after": value for name, value in environment.clocks(device).items() if name != "driver"}


def _arguments(options: Options) -> dict[str, Any]:
    """What was chosen, for the record: of files their names alone."""
    plain = {name: value.name if isinstance(value, Path) else value for name, value in asdict(options).items() if value}
    return plain | {"device": str(options.device)}
