"""The kernels' figures: each shape's time against PyTorch's, and the roofline."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.figure import BASE, OWN, good, new
from benchmarks.records import Records
from benchmarks.work import Measurement

YARDSTICKS = ("baseline-half", "baseline-fp32")  # the first that a shape has
NAME_SIZE, NAME_WIDTH, LINE = 7.0, 3.9, 8.0  # of a name in the roofline, points; width of a letter


@dataclass(frozen=True)
class Pair:
    """Measurements of one subject, shape and batch: PyTorch's, and the fastest of ours; one may be missing."""

    theirs: Measurement | None
    ours: Measurement | None

    @property
    def both(self) -> list[tuple[Measurement, str]]:
        """Those that there are, with their colours."""
        return [(one, shade) for one, shade in ((self.theirs, BASE), (self.ours, OWN)) if one is not None]

    @property
    def last(self) -> Measurement:
        """Ours, if there is one."""
        return self.both[-1][0]


def kernels(records: Records) -> Any:
    """A row for each op and shape: PyTorch's median and that of the fastest of ours, with our error."""
    pairs = list(_pairs(records.level("ops")))
    if not pairs:
        return None
    figure, axes = new(height=1.2 + 0.24 * len(pairs))
    for row, pair in enumerate(pairs):
        times = [one.median_ms or 0.0 for one, _ in pair.both]
        axes.plot(times, [row] * len(times), color="#ccd", linewidth=2, zorder=0)
        for one, shade in pair.both:
            median, low, high = one.median_ms or 0.0, one.p20_ms or 0.0, one.p80_ms or 0.0
            axes.errorbar(median, row, xerr=[[median - low], [high - median]], fmt="o", color=shade, capsize=2)
        text = f"{_gain(pair)}error {pair.last.relative_error:.0e}"
        axes.text(1.4 * max(times), row, text, va="center", fontsize=7)
    axes.set_yticks(range(len(pairs)), [_name(pair.last) for pair in pairs])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, 8 * high)  # room for the text
    axes.set_xlabel(
        "ms, median with p20 and p80; grey: PyTorch (half, or FP32), blue: the fastest of ours", loc="right"
    )
    axes.set_title("Kernels", loc="left")
    return figure


def roofline(records: Records) -> Any:
    """Achieved TFLOP/s against operations per compulsory byte, under the ceilings measured in the same run.

    Of each op and network the shape with the most operations: PyTorch's and the fastest of ours.
    """
    measured = [one for level in ("ops", "networks") for one in records.level(level) if one.flops and one.bytes]
    largest: dict[str, Pair] = {}
    for pair in _pairs(measured):
        before = largest.setdefault(pair.last.subject, pair)
        if pair.last.flops > before.last.flops:
            largest[pair.last.subject] = pair
    if not largest:
        return None
    figure, axes = new(height=6.0)
    ceilings = records.ceilings(next(iter(largest.values())).last)
    copy = ceilings.get("copy_gbps")
    for column, precision in enumerate(("fp32", "fp16", "int8")):
        peak = ceilings.get(f"{precision}_tflops")
        if peak and copy:
            _roof(axes, precision, peak, copy / 1e3, column)
    named = []
    for subject, pair in largest.items():
        points = [(one.tflops or 0.0, one.flops / one.bytes, shade) for one, shade in pair.both]
        for rate, intensity, shade in points:
            axes.plot(intensity, rate, "o", color=shade, markersize=5)
        rate, intensity, _ = max(points)
        named.append((subject, intensity, rate))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(right=20 * max(intensity for _, intensity, _ in named))  # room for names
    _write_names(axes, named)
    axes.set_xlabel("operations per compulsory byte")
    axes.set_ylabel("TFLOP/s of the published work")
    axes.set_title("Roofline: measured ceilings; grey: PyTorch, blue: the fastest of ours", loc="left")
    return figure


def _pairs(measurements: list[Measurement]) -> Iterator[Pair]:
    """In the order of the measurements."""
    groups: dict[tuple[str, str, int], list[Measurement]] = {}
    for one in good(measurements):
        groups.setdefault((one.subject, one.shape, one.batch), []).append(one)
    for group in groups.values():
        by_name = {one.provider: one for one in group}
        theirs = next((by_name[name] for name in YARDSTICKS if name in by_name), None)
        own = [one for one in group if one.provider.startswith("lpkernels")]
        ours = min(own, key=lambda one: one.median_ms or math.inf, default=None)
        if theirs is not None or ours is not None:
            yield Pair(theirs, ours)


def _gain(pair: Pair) -> str:
    if pair.theirs is None or pair.ours is None or not pair.ours.median_ms:
        return ""
    return f"{(pair.theirs.median_ms or 0.0) / pair.ours.median_ms:.3g}x   "


def _name(one: Measurement) -> str:
    return f"{one.subject}{f' x{one.batch}' if one.batch != 1 else ''}, {one.shape}"


def _roof(axes: Any, name: str, peak: float, terabytes: float, column: int) -> None:
    ridge = peak / terabytes
    axes.plot([0.1, ridge, max(1e5, 10 * ridge)], [0.1 * terabytes, peak, peak], color="#444", linewidth=1)
    axes.annotate(
        f"{name} {peak:.3g} TFLOP/s", (0.12, peak), xytext=(90 * column, 3), textcoords="offset points", fontsize=8
    )
    axes.plot([0.1, ridge], [peak, peak], color="#444", linewidth=0.5, linestyle=":")


def _write_names(axes: Any, named: list[tuple[str, float, float]]) -> None:
    """Names to the right of their points, moved down where one is in the way."""
    axes.figure.canvas.draw()
    points = 72 / axes.figure.dpi
    written: list[tuple[float, float, float]] = []  # left, right, height, in points
    for name, intensity, rate in sorted(named, key=lambda item: -item[2]):
        x, y = points * axes.transData.transform((intensity, rate))
        left, right, height = x + 6, x + 8 + NAME_WIDTH * len(name), y
        while any(left < end and right > start and abs(height - its) < LINE for start, end, its in written):
            height -= 1
        written.append((left, right, height))
        place = {"xytext": (6, height - y), "textcoords": "offset points", "fontsize": NAME_SIZE, "va": "center"}
        axes.annotate(name, (intensity, rate), **place)
