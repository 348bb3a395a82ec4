"""LivePortrait on NVIDIA GPUs, fast: kernels for its hot paths and an engine around them.

>>> import lpkernels
>>> model = lpkernels.LivePortrait.from_pretrained("pretrained_weights", device="cuda", dtype=torch.float16)
>>> model = lpkernels.optimize(model)
>>> animator = lpkernels.Animator(model, "portrait.jpg")
>>> frame = animator.step(driving_frame)  # uint8 RGB in, uint8 RGB out

Names are imported on first use, so ``import lpkernels`` stays cheap and ``lpkernels.ops`` works without PyAV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Animator": "lpkernels.animate.animator",
    "FusedLivePortrait": "lpkernels.fused.live_portrait",
    "LivePortrait": "lpkernels.models.live_portrait",
    "LivePortraitConfig": "lpkernels.models.config",
    "MotionOptions": "lpkernels.animate.retarget",
    "accelerate": "lpkernels.integrations.drop_in",
    "Session": "lpkernels.animate.session",
    "load_template": "lpkernels.animate.template",
    "optimize": "lpkernels.fused.convert",
    "restore": "lpkernels.integrations.drop_in",
    "save_template": "lpkernels.animate.template",
}
_SUBMODULES = ("animate", "errors", "fused", "models", "ops", "trace")

__all__ = [
    "Animator",
    "FusedLivePortrait",
    "LivePortrait",
    "LivePortraitConfig",
    "MotionOptions",
    "Session",
    "__version__",
    "accelerate",
    "animate",
    "errors",
    "fused",
    "load_template",
    "models",
    "ops",
    "optimize",
    "restore",
    "save_template",
    "trace",
]

if TYPE_CHECKING:
    from lpkernels import animate, errors, fused, models, ops, trace
    from lpkernels.animate.animator import Animator
    from lpkernels.animate.retarget import MotionOptions
    from lpkernels.animate.session import Session
    from lpkernels.animate.template import load_template, save_template
    from lpkernels.fused.convert import optimize
    from lpkernels.fused.live_portrait import FusedLivePortrait
    from lpkernels.integrations.drop_in import accelerate, restore
    from lpkernels.models.config import LivePortraitConfig
    from lpkernels.models.live_portrait import LivePortrait


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
