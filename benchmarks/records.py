"""Records: one JSON file per result set, its schema checked on load, merged by key when a run adds to it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.work import ITEM_SIZE, Measurement
from lpkernels.errors import InputError, LpkernelsError

SCHEMA = 1
STATUSES = ("ok", "refused", "fell-back", "skipped")
RESULTS = Path(__file__).resolve().parent / "results"
FILE_NAME = "records.json"
_TIMES = ("median_ms", "p20_ms", "p80_ms", "p99_ms")
_SAME_MACHINE = ("device", "torch", "cuda")  # runs that differ here are two result sets, not one


@dataclass
class Run:
    """One invocation: its environment, its ceilings (``copy_gbps``, ``<precision>_tflops``) and its arguments."""

    environment: dict[str, Any]
    ceilings: dict[str, Any]
    config: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class Records:
    """A result set: its runs, and one measurement per (level, subject, shape, batch, provider)."""

    runs: list[Run] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)

    def add_run(self, run: Run) -> int:
        """Take a run in and return its index. Raises InputError if it is of another machine or model."""
        if self.runs:
            first = self.runs[0]
            for name in _SAME_MACHINE:
                ours, theirs = first.environment.get(name), run.environment.get(name)
                if ours != theirs:
                    raise InputError(f"cannot append: the records have {name} {ours!r}, this run has {theirs!r}")
            if first.config != run.config:
                raise InputError(f"cannot append: the records are of config {first.config}, this run of {run.config}")
        self.runs.append(run)
        return len(self.runs) - 1

    def put(self, measurements: list[Measurement], run: int) -> None:
        """Take measurements in; one measured before is replaced, its median kept among ``repeats_ms``.

        A skipped provider never replaces a measured one: it was left out this time, not disproved.
        """
        places = {measurement.key: index for index, measurement in enumerate(self.measurements)}
        for measurement in measurements:
            measurement.run = run
            place = places.get(measurement.key)
            if place is None:
                self.measurements.append(measurement)
                continue
            old = self.measurements[place]
            if old.status == "ok" and measurement.status == "skipped":
                continue
            if old.status == measurement.status == "ok" and old.median_ms is not None:
                measurement.repeats_ms = [*old.repeats_ms, old.median_ms]
            self.measurements[place] = measurement

    def level(self, name: str) -> list[Measurement]:
        """The measurements of one level, in order."""
        return [measurement for measurement in self.measurements if measurement.level == name]

    def ceilings(self, measurement: Measurement) -> dict[str, Any]:
        """The ceilings of the run that a measurement belongs to."""
        return self.runs[measurement.run].ceilings

    def share(self, measurement: Measurement) -> tuple[float | None, float | None]:
        """(share of the arithmetic ceiling, share of the copy ceiling) in 0..1, None where either is unknown."""
        ceilings = self.ceilings(measurement)
        arithmetic = ceilings.get(f"{measurement.precision}_tflops")
        copy = ceilings.get("copy_gbps")
        return (
            measurement.tflops / arithmetic if measurement.tflops and arithmetic else None,
            measurement.gbps / copy if measurement.gbps and copy else None,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "measurements": [dataclasses.asdict(measurement) for measurement in self.measurements],
        }


def save(records: Records, path: Path) -> None:
    """Write under a temporary name, then rename: a run that is killed leaves the last complete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(records.to_dict()), indent=1, allow_nan=False) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> Records:
    """Read and check a file of records (or a folder that holds one).

    Raises InputError naming the file and the field when it is missing, not JSON, of another schema, or inconsistent.
    """
    path = path / FILE_NAME if path.is_dir() else path
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such records; `lpkernels bench` writes them") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from error
    return parse(data, str(path))


def parse(data: Any, origin: str) -> Records:
    """Records out of plain JSON values; ``origin`` names them in errors."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{origin}: expected records of schema {SCHEMA}, got {found!r}; measure again")
    runs = [_build(Run, item, f"{origin}: runs[{index}]") for index, item in enumerate(_list(data, "runs", origin))]
    measurements = []
    for index, item in enumerate(_list(data, "measurements", origin)):
        where = f"{origin}: measurements[{index}]"
        measurement = _build(Measurement, item, where)
        if problem := check(measurement, len(runs)):
            raise InputError(f"{where}: {problem}")
        measurements.append(measurement)
    return Records(runs, measurements)


def check(measurement: Measurement, runs: int) -> str | None:
    """What is inconsistent about a measurement, or None. A time without an error, above all, must not exist."""
    if measurement.status not in STATUSES:
        return f"status must be one of {', '.join(STATUSES)}, got {measurement.status!r}"
    if measurement.precision not in ITEM_SIZE:
        return f"precision must be one of {', '.join(ITEM_SIZE)}, got {measurement.precision!r}"
    if not 0 <= measurement.run < runs:
        return f"run must be an index below {runs}, got {measurement.run}"
    times = [getattr(measurement, name) for name in _TIMES]
    if measurement.status != "ok":
        if any(time is not None for time in times) or measurement.warmup_ms:
            return f"a {measurement.status} provider must have no time"
        return None if measurement.reason else f"a {measurement.status} provider must have a reason"
    if any(not isinstance(time, (int, float)) or not time > 0 or not math.isfinite(time) for time in times):
        return f"median, p20, p80 and p99 must be positive times, got {times}"
    if measurement.relative_error is None or not math.isfinite(measurement.relative_error):
        return "a time must have its relative error beside it"
    return None


def _list(data: dict[str, Any], name: str, origin: str) -> list[Any]:
    value = data.get(name)
    if not isinstance(value, list):
        raise InputError(f"{origin}: {name} must be a list, got {type(value).__name__}")
    return value


def _build(kind: Any, item: Any, where: str) -> Any:
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected an object, got {type(item).__name__}")
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(item) - names):
        raise InputError(f"{where}: unknown field {unknown[0]!r}")
    try:
        return kind(**item)
    except TypeError as error:
        raise InputError(f"{where}: {error}") from error


def _rounded(value: Any) -> Any:
    """Six significant digits: more is noise, and makes every difference between two files unreadable."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def only(records: Records) -> Run:
    """The run that stands for the whole set: its latest."""
    if not records.runs:
        raise LpkernelsError("the records hold no run: nothing was measured")
    return records.runs[-1]
