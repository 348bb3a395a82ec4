"""What a CUDA graph cannot record, found without a GPU: numbers that lie on the host when a call begins."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoHostData(TorchDispatchMode):
    """Inside, a tensor made of Python numbers or of an index in a list fails: on a GPU it would be copied there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten.lift_fresh.default, f"numbers from the host: {args}"
        return func(*args, **(kwargs or {}))
