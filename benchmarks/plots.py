"""Figures of the records, as matplotlib draws them: one function per figure, PNG bytes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import color, good, new, png
from benchmarks.plot_kernels import kernels, roofline
from benchmarks.records import Records
from benchmarks.work import Measurement
from lpkernels.errors import LpkernelsError

NETWORK_COLORS = ("#1f6feb", "#f2b134", "#2a9d6f", "#d1495b")
COLORS, STYLES = 10, ("-", "--", ":")  # of lines: after so many colours the next style
FRAME_NETWORKS = ("motion_extractor", "stitching", "warping_module", "spade_generator")
NETWORK_LABELS = ("M motion extractor", "S stitching", "W warping module", "G SPADE decoder")


def draw(records: Records) -> dict[str, bytes]:
    """Figure name -> PNG, for what the records hold. Raises LpkernelsError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise LpkernelsError("figures need matplotlib: pip install 'lpkernels[bench]'") from error
    matplotlib.use("Agg")
    figures: dict[str, Callable[[Records], Any]] = {
        "frame": lambda kept: times(kept.level("frame"), "Whole frame"),
        "networks": stacked,
        "ops": kernels,
        "techniques": lambda kept: times(kept.level("techniques"), "Techniques on the whole frame"),
        "roofline": roofline,
        "throughput": throughput,
        "warmup": warmup,
    }
    drawn = {}
    for name, function in figures.items():
        figure = function(records)
        if figure is not None:
            drawn[name] = png(figure)
    return drawn


def write(figures: dict[str, bytes], folder: Path) -> list[Path]:
    """Write each figure as ``<name>.png`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, data in zip(paths, figures.values(), strict=True):
        path.write_bytes(data)
    return paths


def times(measurements: Sequence[Measurement], title: str) -> Any:
    """Median per provider as bars, p20 to p80 as error bars, the relative error written beside each."""
    measured = good(measurements)
    if not measured:
        return None
    figure, axes = new(height=1.2 + 0.34 * len(measured))
    several = len({(one.subject, one.batch) for one in measured}) > 1
    for row, one in enumerate(measured):
        median, low, high = one.median_ms or 0.0, one.p20_ms or 0.0, one.p80_ms or 0.0
        axes.barh(row, median, color=color(one.provider), height=0.7)
        axes.errorbar(median, row, xerr=[[median - low], [high - median]], color="#222", capsize=3, linewidth=1)
        text = f"  {median:.3g} ms   error {one.relative_error:.0e}"
        axes.text(max(high, median), row, text, va="center", fontsize=8)
    axes.set_yticks(range(len(measured)), [_label(one, several) for one in measured])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(one.p80_ms or 0.0 for one in measured))
    axes.set_xlabel("ms, median with p20 and p80")
    axes.set_title(title, loc="left")
    return figure


def stacked(records: Records) -> Any:
    """Time per network, stacked, for every provider that has all networks of a frame at batch 1."""
    found: dict[str, dict[str, Measurement]] = {}
    for one in good(records.level("networks")):
        if one.batch == 1 and one.subject in FRAME_NETWORKS:
            found.setdefault(one.provider, {})[one.subject] = one
    whole = {provider: parts for provider, parts in found.items() if len(parts) == len(FRAME_NETWORKS)}
    if not whole:
        return None
    figure, axes = new(height=1.6 + 0.42 * len(whole))
    starts = [0.0] * len(whole)
    for network, label, shade in zip(FRAME_NETWORKS, NETWORK_LABELS, NETWORK_COLORS, strict=True):
        widths = [parts[network].median_ms or 0.0 for parts in whole.values()]
        axes.barh(range(len(whole)), widths, left=starts, label=label, color=shade, height=0.7)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for row, total in enumerate(starts):
        axes.text(total, row, f"  {total:.3g} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(whole)), list(whole))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(starts))
    axes.set_xlabel("ms, medians of separate calls, added")
    axes.set_title("The networks of a frame", loc="left")
    figure.legend(frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    return figure


def throughput(records: Records) -> Any:
    """Frames per second against batch, one line per provider."""
    lines: dict[str, list[Measurement]] = {}
    for one in good(records.level("throughput")):
        lines.setdefault(one.provider, []).append(one)
    if not lines:
        return None
    figure, axes = new(height=4.2)
    for provider, line in lines.items():
        line = sorted(line, key=lambda one: one.batch)
        rates = [1e3 * one.frames / (one.median_ms or 1.0) for one in line]
        slow = [rate - 1e3 * one.frames / (one.p80_ms or 1.0) for rate, one in zip(rates, line, strict=True)]
        fast = [1e3 * one.frames / (one.p20_ms or 1.0) - rate for rate, one in zip(rates, line, strict=True)]
        axes.errorbar([one.batch for one in line], rates, yerr=[slow, fast], marker="o", capsize=3, label=provider)
    batches = sorted({one.batch for line in lines.values() for one in line})
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch")
    axes.set_ylabel("frames per second")
    axes.set_title("Throughput of the whole frame", loc="left")
    axes.legend(frameon=False, fontsize=8)
    return figure


def warmup(records: Records) -> Any:
    """Time of each of the first calls, the build added to the first: what a user waits before the fast state."""
    from matplotlib.ticker import LogLocator, NullLocator

    lines = [one for one in good(records.level("frame")) if one.batch == 1 and one.warmup_ms]
    if not lines:
        return None
    figure, axes = new(height=4.2)
    for one in lines:
        first = one.warmup_ms[0] + 1e3 * (one.build_s or 0.0)
        calls = range(1, len(one.warmup_ms) + 1)
        style = STYLES[len(axes.lines) // COLORS % len(STYLES)]
        axes.plot(calls, [first, *one.warmup_ms[1:]], style, marker=".", label=one.provider)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("call")
    axes.set_ylabel("ms")
    axes.set_title("Warm-up of the whole frame: build and first call, then call by call", loc="left")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _label(one: Measurement, several: bool) -> str:
    batch = f" x{one.batch}" if one.batch != 1 else ""
    return f"{one.subject}{batch}: {one.provider}" if several else one.provider
