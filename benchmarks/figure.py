"""What every figure shares: its frame, one colour for each family of providers, PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.work import Measurement

BASE, OWN, COMPILED, GRAPH = "#8a94a6", "#1f6feb", "#d97706", "#2a9d6f"


def color(provider: str) -> str:
    """One colour per family of providers, the same in every figure."""
    if provider.startswith("lpkernels"):
        return OWN
    if "compile" in provider:
        return COMPILED
    return GRAPH if "graph" in provider else BASE


def good(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Those that were measured and right."""
    return [one for one in measurements if one.status == "ok"]


def new(height: float) -> tuple[Any, Any]:
    """A figure of that many inches, 9 wide, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def write_png(figure: Any, path: Path) -> Path:
    """Write one figure, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))
    return path


def png(figure: Any) -> bytes:
    """The figure's file; without the software's version in it the same records give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
