"""A picture of one frame of a trace: frame, networks, ops by depth, and what the GPU does below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figure import BASE, GRAPH, OWN, write_png
from lpkernels import profiling
from lpkernels.errors import InputError
from lpkernels.profiling import Range

COLORS = {"frame": GRAPH, "network": OWN, "op": "#f2b134", "kernel": BASE}
LETTER = 0.0055  # share of the picture's width that a letter of a label takes


def draw(trace: Path, picture: Path) -> Path:
    """Draw the last frame of ``trace`` (written by ``lpkernels profile --tool torch``) into ``picture``, a PNG.

    Raises InputError if the trace has no frame.
    """
    ranges = profiling.read_ranges(trace)
    frames = [item for item in ranges if item.category == "frame"]
    if not frames:
        raise InputError(f"{trace}: no frame range in it; write it with lpkernels profile --tool torch")
    frame = frames[-1]
    kernels = [item for item in profiling.read_kernels(trace) if item.start >= frame.start]
    end = max([frame.end, *(item.end for item in kernels)])
    return write_png(_figure([item for item in ranges if frame.holds(item)], kernels, frame.start, end), picture)


def rows(ranges: list[Range]) -> list[tuple[int, Range]]:
    """Each range with its depth: the number of ranges around it."""
    stack: list[Range] = []
    placed = []
    for item in ranges:
        while stack and not stack[-1].holds(item):
            stack.pop()
        placed.append((len(stack), item))
        stack.append(item)
    return placed


def _figure(ranges: list[Range], kernels: list[Range], start: float, end: float) -> Any:
    from matplotlib.figure import Figure

    placed = rows(ranges)
    depth = 1 + max(row for row, _ in placed)
    figure = Figure(figsize=(12, 0.6 + 0.45 * (depth + bool(kernels))), layout="constrained")
    axes = figure.add_subplot()
    for row, item in [*placed, *((depth, kernel) for kernel in kernels)]:
        width = (item.end - item.start) / 1e3
        left = (item.start - start) / 1e3
        edge = "white" if item.category != "kernel" else "none"
        axes.barh(row, width, left=left, height=0.86, color=COLORS[item.category], edgecolor=edge, linewidth=0.5)
        name = item.name.split(" ")[0].rsplit(".", 1)[-1]
        if item.category != "kernel" and width > len(name) * LETTER * (end - start) / 1e3:
            text = axes.text(left + width / 2, row, name, ha="center", va="center", fontsize=7, clip_on=True)
            text.set_in_layout(False)
    labels = ["frame", "network", *["op"] * (depth - 2)][:depth]
    axes.set_yticks(range(depth + bool(kernels)), [*labels, *(["GPU kernels"] if kernels else [])])
    axes.set_xlim(0, (end - start) / 1e3)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
