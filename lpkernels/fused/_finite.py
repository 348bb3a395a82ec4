"""A check for inf and NaN after every layer, for those who look for an overflow: off unless it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lpkernels.errors import LpkernelsError


def watch(model: nn.Module) -> list[RemovableHandle]:
    """Hooks that raise LpkernelsError naming the first layer below ``model`` whose answer is not finite.

    Each waits for the device. While a CUDA graph is captured nothing is checked: its tensors hold no values yet.
    """
    return [module.register_forward_hook(_hook(name)) for name, module in model.named_modules() if module is not model]


def _hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
    def check(module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return
        for tensor in _float_tensors(output):
            if not tensor.is_meta and not bool(tensor.isfinite().all()):
                kind = str(tensor.dtype).removeprefix("torch.")
                shape = tuple(tensor.shape)
                raise LpkernelsError(
                    f"{name} ({type(module).__name__}) is the first layer to give inf or NaN, in {kind} of shape "
                    f"{shape}; if its inputs are sound, use precision bf16 or fp32"
                )

    return check


def _float_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _float_tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _float_tensors(item)
