"""README's tables out of the records: what stands between two markers is written here, never by hand.

A block is named ``<results folder>/<table>``, for instance ``nvidia-h200/frame``::

    <!-- bench:begin nvidia-h200/frame -->
    <!-- bench:end nvidia-h200/frame -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import claim, records, sections
from benchmarks.plots import FRAME_NETWORKS
from benchmarks.records import Records, only
from benchmarks.tables import Table, against
from benchmarks.work import Measurement
from lpkernels.errors import InputError

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"<!-- bench:begin (?P<name>\S+) -->\n(?P<text>.*?)<!-- bench:end (?P=name) -->", re.DOTALL)
_MARKER = re.compile(r"<!-- bench:(?:begin|end) \S+ -->")


def _ran(kept: Records, level: str) -> list[Measurement]:
    return [one for one in kept.level(level) if one.batch == 1 and one.status != "skipped"]


def _frame(kept: Records) -> Table:
    return against(_ran(kept, "frame"), *sections.BASELINES)


def _networks(kept: Records) -> Table:
    return against([one for one in _ran(kept, "networks") if one.subject in FRAME_NETWORKS], *sections.BASELINES)


def _ops(kept: Records) -> Table:
    return against(_ran(kept, "ops"), "baseline-half", memory=False)


def _throughput(kept: Records) -> Table:
    shown = (*sections.BASELINES, "lpkernels-fp16")
    return sections.throughput([one for one in kept.level("throughput") if one.provider in shown])


TABLES: dict[str, Callable[[Records], Table | None]] = {
    "frame": _frame,
    "networks": _networks,
    "ops": _ops,
    "throughput": _throughput,
    "streams": lambda kept: sections.streams(kept.level("streams")),
    "job": lambda kept: sections.job(kept.level("job")),
    "techniques": lambda kept: sections.techniques(kept.level("techniques")),
    "claim": claim.table,
    "warm-up": lambda kept: sections.warm_up(kept.level("warm-up")),
    "programs": lambda kept: sections.programs(kept.level("programs")),
    "endurance": lambda kept: sections.endurance(kept.level("endurance")),
}


def _source(kept: Records, level: str) -> str:
    """Where a table's numbers come from: machine, dates and commits, and which providers each commit gave."""
    providers: dict[str, list[str]] = {}  # of a commit, in the order of the runs
    for measurement in sorted(kept.level(level), key=lambda item: item.run):
        environment = kept.runs[measurement.run].environment
        commit = ", ".join(
            str(environment[key])[:size] for key, size in (("date", 10), ("commit", 12)) if environment.get(key)
        )
        if measurement.status == "ok" and measurement.provider not in providers.setdefault(commit, []):
            providers[commit].append(measurement.provider)
    run = only(kept)
    machine = [str(run.environment.get("device", "")), f"torch {run.environment.get('torch')}", f"config {run.config}"]
    several = len(providers) > 1
    commits = [f"{commit} ({', '.join(names)})" if several else commit for commit, names in providers.items() if names]
    return "; ".join([", ".join(filter(None, machine)), *filter(None, commits)])


def render(name: str, results: Path = records.RESULTS) -> str:
    """The text of one block. Raises InputError for a name that is no ``<results folder>/<table>``."""
    folder, _, table = name.rpartition("/")
    if table not in TABLES or not folder:
        raise InputError(f"README block {name!r}: expected <results folder>/ and one of {', '.join(TABLES)}")
    kept = records.load(results / folder)
    made = TABLES[table](kept)
    if made is None or not made.rows:
        raise InputError(f"README block {name!r}: the records in {folder} hold nothing for it; measure it first")
    lines = [
        made.markdown(),
        "",
        f"{_source(kept, table)}. Records: `benchmarks/results/{folder}/{records.FILE_NAME}`.",
    ]
    if (results / folder / "figures" / f"{table}.png").exists():
        lines += ["", f"![{table}](benchmarks/results/{folder}/figures/{table}.png)"]
    return "\n".join(lines) + "\n"


def update(path: Path = README, write: bool = True, results: Path = records.RESULTS) -> list[str]:
    """Bring every block of ``path`` up to date; the names of those that differed. ``write=False`` only looks.

    Raises InputError for a marker without its partner, or a block that cannot be rendered.
    """
    text = path.read_text()
    stale: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name, fresh = match["name"], render(match["name"], results)
        if match["text"] != fresh:
            stale.append(name)
        return f"<!-- bench:begin {name} -->\n{fresh}<!-- bench:end {name} -->"

    if lonely := _MARKER.search(_BLOCK.sub("", text)):
        raise InputError(f"{path.name}: marker without its partner: {lonely[0]}")
    fresh_text = _BLOCK.sub(replace, text)
    if write and stale:
        path.write_text(fresh_text)
    return stale
