"""The networks rebuilt for speed: prepacked weights and fused ops, one file per network, made from a baseline."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpkernels.fused.convert import build, optimize
    from lpkernels.fused.live_portrait import FusedLivePortrait
    from lpkernels.fused.warping_network import WarpSource

_HOME = {
    "FusedLivePortrait": "live_portrait",
    "WarpSource": "warping_network",
    "build": "convert",
    "optimize": "convert",
}

__all__ = ["FusedLivePortrait", "WarpSource", "build", "optimize"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
