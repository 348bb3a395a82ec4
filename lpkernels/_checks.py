"""Argument checks of the ops and models: every error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lpkernels.errors import InputError

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


def integers(name: str, values: Any, *parts: str) -> tuple[int, ...]:
    """``values`` as whole numbers, one for each of ``parts``, which say what they are; else raise InputError."""
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        numbers = tuple(operator.index(value) for value in values)
    except TypeError:
        numbers = ()
    if len(numbers) != len(parts):
        given = values[0] if len(parts) == 1 else values
        raise InputError(f"{name} must be {', '.join(parts)} in whole pixels, got {shown(given)}")
    return numbers


def is_finite(value: object) -> bool:
    """Whether ``value`` is a number, neither infinite nor NaN."""
    return isinstance(value, Real) and math.isfinite(value)


def shown(value: object) -> str:
    """A short word for what came, on one line."""
    return " ".join(reprlib.repr(value).split())
