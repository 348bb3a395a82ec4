"""The networks of LivePortrait (arXiv 2407.03168) as published, and the loading of their checkpoints."""

from __future__ import annotations

from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait

__all__ = ["LivePortrait", "LivePortraitConfig"]
