"""Programs that people already run, made fast in place: the original LivePortrait and what is built on its modules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpkernels.integrations._construction import Acceleration
    from lpkernels.integrations._report import Report
    from lpkernels.integrations.drop_in import accelerate, restore

_HOME = {"Acceleration": "_construction", "Report": "_report", "accelerate": "drop_in", "restore": "drop_in"}

__all__ = ["Acceleration", "Report", "accelerate", "restore"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
