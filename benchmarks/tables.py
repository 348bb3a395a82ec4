"""Tables of records as rows of text, and their three shapes: terminal, Markdown, HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.records import Records
from benchmarks.work import Measurement


@dataclass(frozen=True)
class Table:
    """A heading row and rows of text; the first ``left`` columns are names, the others numbers."""

    heading: list[str]
    rows: list[list[str]] = field(default_factory=list)
    left: int = 2

    def terminal(self) -> str:
        """Columns padded with spaces."""
        lines = [self.heading, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.heading))]
        last = len(widths) - 1

        def pad(text: str, column: int) -> str:
            if column == last and column >= self.left and not _is_number_column(self.heading[column]):
                return text
            return text.ljust(widths[column]) if column < self.left else text.rjust(widths[column])

        shown = ["  ".join(pad(text, column) for column, text in enumerate(line)).rstrip() for line in lines]
        return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])

    def markdown(self) -> str:
        """A GitHub table."""
        rule = ["---" if column < self.left else "---:" for column in range(len(self.heading))]
        lines = [self.heading, rule, *self.rows]
        return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)

    def html(self) -> str:
        """A ``table`` element."""

        def row(cells: list[str], tag: str) -> str:
            return (
                "<tr>"
                + "".join(
                    f'<{tag} class="{"name" if column < self.left else "number"}">{html.escape(text)}</{tag}>'
                    for column, text in enumerate(cells)
                )
                + "</tr>"
            )

        body = "".join(row(line, "td") for line in self.rows)
        return f"<table><thead>{row(self.heading, 'th')}</thead><tbody>{body}</tbody></table>"


def _is_number_column(heading: str) -> bool:
    return heading not in ("note", "verdict")


def milliseconds(value: float | None) -> str:
    """Three significant digits, in µs below 0.1 ms."""
    if value is None:
        return ""
    return f"{_digits(value * 1e3)} µs" if value < 0.1 else f"{_digits(value)} ms"


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(value: float | None, signed: bool = False) -> str:
    """A share as whole percent; one decimal when signed."""
    if value is None:
        return ""
    return f"{value:+.1%}" if signed else f"{value:.0%}"


def subject_name(measurement: Measurement) -> str:
    """``frame/frame x4``: level, subject, and the batch unless it is one."""
    batch = f" x{measurement.batch}" if measurement.batch != 1 else ""
    return f"{measurement.level}/{measurement.subject}{batch}"


def error_text(measurement: Measurement) -> str:
    return "" if measurement.relative_error is None else f"{measurement.relative_error:.1e}"


def note(measurement: Measurement) -> str:
    """What a reader must know: why there is no time, or what to be careful about."""
    if measurement.status != "ok":
        return f"{measurement.status}: {measurement.reason}"
    notes = []
    if breaks := measurement.extras.get("graph_breaks"):
        notes.append(f"{breaks} graph breaks")
    if measurement.drift is not None and abs(measurement.drift) > 0.03:
        notes.append(f"drifted {measurement.drift:+.0%} while timed")
    notes += [str(measurement.extras["note"])] if "note" in measurement.extras else []
    return "; ".join(notes)


def timings(records: Records, measurements: list[Measurement]) -> Table:
    """The main table: times, error, rates and the share of this run's ceilings; what was refused shows no time."""
    heading = ["subject", "provider", "median", "p20", "p80", "p99", "error", "TFLOP/s", "of peak", "GB/s", "of copy"]
    rows = []
    for measurement in measurements:
        if measurement.status == "skipped":
            continue
        arithmetic, copy = records.share(measurement)
        rows.append(
            [
                subject_name(measurement),
                measurement.provider,
                *(milliseconds(getattr(measurement, f"{name}_ms")) for name in ("median", "p20", "p80", "p99")),
                error_text(measurement) if measurement.status in ("ok", "refused") else "",
                f"{measurement.tflops:.3g}" if measurement.tflops else "",
                percent(arithmetic),
                f"{measurement.gbps:.3g}" if measurement.gbps else "",
                percent(copy),
                note(measurement),
            ]
        )
    return Table([*heading, "note"], rows)


def skipped(measurements: list[Measurement]) -> Table:
    """Providers that could not run, one row per level and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in measurements:
        if one.status == "skipped":
            names = reasons.setdefault((one.level, one.reason or ""), [])
            names += [one.provider] if one.provider not in names else []
    return Table(
        ["level", "skipped", "providers"], [[*key, ", ".join(names)] for key, names in reasons.items()], left=3
    )


def memory_and_warmup(measurements: list[Measurement]) -> Table:
    """What a user waits for before the fast state, and the memory it takes."""
    heading = ["subject", "provider", "build", "1st call", "2nd", "10th", "steady", "peak memory", "kept memory"]
    rows = [
        [
            subject_name(item),
            item.provider,
            f"{item.build_s:.2f} s" if item.build_s is not None else "",
            *(milliseconds(item.warmup_ms[index]) if index < len(item.warmup_ms) else "" for index in (0, 1, 9)),
            milliseconds(item.median_ms),
            *(f"{value:.0f} MiB" if value is not None else "" for value in (item.peak_mb, item.steady_mb)),
        ]
        for item in measurements
        if item.status == "ok" and item.warmup_ms
    ]
    return Table(heading, rows)


def against(measurements: list[Measurement], *baselines: str, memory: bool = True) -> Table:
    """Median, the ratio to each baseline provider of the same work, error; ``memory``: its peak beside the first's."""
    rows = []
    shapes: dict[str, set[str]] = {}
    for item in measurements:
        shapes.setdefault(item.subject, set()).add(item.shape)
    for item in measurements:
        name = item.subject + (f" x{item.batch}" if item.batch != 1 else "")
        name += f" ({item.shape})" if len(shapes[item.subject]) > 1 else ""
        median = milliseconds(item.median_ms) or item.status
        error = error_text(item) if item.status == "ok" else ""
        peak = [memory_text(item, measurements, baselines[0])] if memory else []
        rows.append([name, item.provider, median, *ratios(item, measurements, baselines), error, *peak])
    heading = ["subject", "provider", "median", *(f"vs {name}" for name in baselines), "error"]
    return Table([*heading, *(["peak memory"] if memory else [])], rows)


def ratios(one: Measurement, measurements: list[Measurement], baselines: Sequence[str]) -> list[str]:
    """How many times faster than each of ``baselines`` on the same work; empty where either has no time."""
    found = []
    for name in baselines:
        other = _same_work(one, measurements, name)
        before = other.median_ms if other is not None else None
        found.append(f"{before / one.median_ms:.2f}x" if before and one.median_ms else "")
    return found


def memory_text(one: Measurement, measurements: list[Measurement], baseline: str) -> str:
    """Peak memory, and as a multiple of a baseline's where that is another."""
    if one.peak_mb is None:
        return ""
    other = _same_work(one, measurements, baseline)
    whole = other.peak_mb if other is not None and other is not one else None
    return f"{one.peak_mb:.0f} MiB" + (f" ({one.peak_mb / whole:.2f}x)" if whole else "")


def _same_work(one: Measurement, measurements: list[Measurement], provider: str) -> Measurement | None:
    wanted = (*one.key[:-1], provider)
    return next((item for item in measurements if item.key == wanted), None)


def columns(heading: list[str], measurements: list[Measurement], row: Callable[[Measurement], list[str]]) -> Table:
    """A table of one row per measurement that is ok."""
    return Table(heading, [row(item) for item in measurements if item.status == "ok"])
