"""Argument checks of the ops and models: every error names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def is_tensor(name: str, value: object) -> Tensor:
    """Return ``value`` if it is a tensor, else raise TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def shape(name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """Raise ValueError unless ``tensor`` has the ``expected`` shape; a string stands for any size of at least one."""
    sizes = tuple(tensor.shape)
    wanted = "(" + ", ".join(str(size) for size in expected) + ")"
    if len(sizes) != len(expected):
        raise ValueError(f"{name} must have shape {wanted}, got {len(sizes)} dimensions: {sizes}")
    for size, want in zip(sizes, expected, strict=True):
        if isinstance(want, str):
            if size == 0:
                raise ValueError(f"{name} must have shape {wanted} with no empty dimension, got {sizes}")
        elif size != want:
            raise ValueError(f"{name} must have shape {wanted}, got {sizes}")


def dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype] = FLOATS) -> None:
    """Raise TypeError unless ``tensor`` has one of the ``allowed`` dtypes."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(item).removeprefix("torch.") for item in allowed)
        raise TypeError(f"{name} must have dtype {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def same_device(first_name: str, first: Tensor, **others: Tensor) -> None:
    """Raise ValueError unless all tensors lie on the device of ``first``."""
    for name, tensor in others.items():
        if tensor.device != first.device:
            raise ValueError(f"{name} must be on the device of {first_name}, {first.device}; got {tensor.device}")


def same_dtype(first_name: str, first: Tensor, **others: Tensor) -> None:
    """Raise TypeError unless all tensors have the dtype of ``first``."""
    for name, tensor in others.items():
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}; got {tensor.dtype}")
