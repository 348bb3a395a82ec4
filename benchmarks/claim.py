"""The published claim beside what can be measured: a short text and a table out of the records."""

from __future__ import annotations

from benchmarks.records import Records
from benchmarks.tables import Table, error_text, milliseconds
from benchmarks.work import Measurement

CLAIMED_BEFORE_MS, CLAIMED_AFTER_MS = 582.4, 1.2
CLAIM = (
    "Claim: one inference fell from 0.5824 s to 0.0012 s, 488 times, with 320 to 387 MB of memory. "
    "No definition of either time came with it: which precision, which call, whether the device was waited for."
)


def table(records: Records) -> Table | None:
    """Every time that could stand on either side of such a ratio; None if the claim level was not measured."""
    cold = [one for one in records.level("claim") if one.status == "ok"]
    if not cold:
        return None
    rows = [["claimed: before", milliseconds(CLAIMED_BEFORE_MS), "", "", ""]]
    best = fastest(records)
    for one in cold:
        rows += [
            _row(f"{one.provider}: preparing the source in a fresh process", one.extras["prepare_ms"], one, best),
            _row(f"{one.provider}: its first frame", one.median_ms, one, best),
            _row(f"{one.provider}: a warm frame", one.extras["warm_ms"], one, best),
            _row(f"{one.provider}: a warm frame, device not waited for", one.extras["unwaited_ms"], one, best),
        ]
    rows.append(["claimed: after", milliseconds(CLAIMED_AFTER_MS), "", "", ""])
    if best is not None:
        rows.append(_row(f"{best.provider}: fastest whole frame here", best.median_ms, best, best))
    return Table(["what a timer shows", "time", "times the fastest", "error", "peak memory"], rows, left=1)


def remarks(records: Records) -> list[str]:
    """What part of such a ratio is warm-up, synchronisation, precision; sentences with measured figures."""
    cold = {one.provider: one for one in records.level("claim") if one.status == "ok"}
    plain, best = cold.get("baseline-fp32"), fastest(records)
    if plain is None or plain.median_ms is None:
        return []
    warm, unwaited = plain.extras["warm_ms"], plain.extras["unwaited_ms"]
    remarks = [
        f"Warm-up: the first FP32 frame takes {plain.median_ms / warm:.1f} times a warm one, and the first use of the "
        f"libraries before it {plain.extras['prepare_ms'] / warm:.0f} times.",
        f"Synchronisation: a timer that does not wait for the device sees {unwaited / warm:.0%} of a warm frame.",
    ]
    if (amp := cold.get("baseline-amp")) is not None:
        remarks.append(
            f"Precision: FP16 autocast, as shipped, takes {amp.extras['warm_ms'] / warm:.2f} of FP32's time."
        )
    if best is not None and best.median_ms is not None:
        remarks.append(
            f"Like for like, warm and waited for, the fastest frame here is {warm / best.median_ms:.1f} times FP32 "
            f"eager; against the first frame of a fresh process it is {plain.median_ms / best.median_ms:.0f} times."
        )
    return remarks


def fastest(records: Records) -> Measurement | None:
    """The fastest right provider of the whole frame at batch 1."""
    frames = [one for one in records.level("frame") if one.median_ms is not None and one.batch == 1]
    return min(frames, key=lambda one: one.median_ms or 0.0, default=None)


def _row(name: str, time: float | None, one: Measurement, best: Measurement | None) -> list[str]:
    ratio = f"{time / best.median_ms:.1f}x" if time and best is not None and best.median_ms else ""
    peak = f"{one.peak_mb:.0f} MiB" if one.peak_mb is not None else ""
    return [name, milliseconds(time), ratio, error_text(one), peak]
