"""Two result sets side by side: what changed beyond the spread of both."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.records import Records
from benchmarks.tables import Table, milliseconds, percent, subject_name
from benchmarks.work import Measurement

SMALLEST_CHANGE = 0.03  # medians repeat within 3 %


@dataclass(frozen=True)
class Change:
    """One provider of one subject in two result sets; ``ratio`` is the new over the old median."""

    before: Measurement | None
    after: Measurement | None
    verdict: str
    ratio: float | None = None

    @property
    def one(self) -> Measurement:
        """Whichever side exists."""
        measurement = self.after or self.before
        assert measurement is not None
        return measurement


def compare(before: Records, after: Records) -> list[Change]:
    """Every key of either set, those of ``after`` first, with what happened to it."""
    old = {measurement.key: measurement for measurement in before.measurements}
    new = {measurement.key: measurement for measurement in after.measurements}
    return [_judge(old.get(key), new.get(key)) for key in [*new, *(key for key in old if key not in new)]]


def _judge(before: Measurement | None, after: Measurement | None) -> Change:
    if before is None:
        return Change(None, after, "new")
    if after is None:
        return Change(before, None, "gone")
    if before.status != after.status:
        return Change(before, after, f"{before.status} -> {after.status}")
    if before.median_ms is None or after.median_ms is None:
        return Change(before, after, "same")
    ratio = after.median_ms / before.median_ms
    if _overlap(before, after) or abs(ratio - 1) <= SMALLEST_CHANGE:
        return Change(before, after, "same", ratio)
    return Change(before, after, "faster" if ratio < 1 else "slower", ratio)


def _overlap(one: Measurement, other: Measurement) -> bool:
    """Whether the p20..p80 intervals meet."""
    if one.p20_ms is None or one.p80_ms is None or other.p20_ms is None or other.p80_ms is None:
        return True
    return one.p20_ms <= other.p80_ms and other.p20_ms <= one.p80_ms


def table(changes: list[Change], everything: bool = False) -> Table:
    """The changes as a table; those within the spread only when ``everything``."""
    rows = []
    for change in changes:
        if change.verdict == "same" and not everything:
            continue
        rows.append(
            [
                subject_name(change.one),
                change.one.provider,
                _time(change.before),
                _time(change.after),
                percent(change.ratio - 1, signed=True) if change.ratio else "",
                change.verdict,
            ]
        )
    return Table(["subject", "provider", "before", "after", "change", "verdict"], rows)


def _time(measurement: Measurement | None) -> str:
    if measurement is None:
        return ""
    if measurement.median_ms is None:
        return measurement.status
    median, low, high = (milliseconds(getattr(measurement, f"{name}_ms")) for name in ("median", "p20", "p80"))
    return f"{median} [{low}, {high}]"
