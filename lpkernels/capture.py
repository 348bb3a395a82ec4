"""Real inputs of op calls, recorded with ``LPKERNELS_CAPTURE=dir`` and read back for ``lpkernels bench replay dir``."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lpkernels.errors import InputError

ENVIRONMENT = "LPKERNELS_CAPTURE"
PER_SIGNATURE = 4  # calls kept of each op and set of shapes
_saved: dict[str, int] = {}
_numbers = itertools.count()


@dataclass(frozen=True)
class Capture:
    """One recorded call: the op's name and its arguments in order (tensors, numbers, strings, None)."""

    op: str
    arguments: tuple[Any, ...]
    path: Path


def active() -> bool:
    """Whether calls are to be recorded."""
    return bool(os.environ.get(ENVIRONMENT)) and not torch.compiler.is_compiling() and not _graph_capture()


def save(op: str, arguments: Sequence[Any]) -> Path | None:
    """Record one call of ``op`` in the folder that the environment names; None once enough of its kind are there.

    Strides are kept. Raises InputError if the folder cannot be written to.
    """
    folder = Path(os.environ[ENVIRONMENT])
    signature = repr((folder, op, [_describe(value) for value in arguments]))
    if _saved.get(signature, 0) >= PER_SIGNATURE:
        return None
    tensors = {str(i): value.detach().contiguous() for i, value in enumerate(arguments) if isinstance(value, Tensor)}
    described = json.dumps({"op": op, "arguments": [_describe(value) for value in arguments]})
    path = folder / f"{op}-{os.getpid()}-{next(_numbers):04}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The clone parts tensors that share memory, which the format refuses.
        safetensors.torch.save_file({name: value.clone() for name, value in tensors.items()}, path, {"call": described})
    except OSError as error:
        raise InputError(f"{ENVIRONMENT}: cannot write {path}: {error.strerror or error}") from error
    _saved[signature] = _saved.get(signature, 0) + 1
    return path


def load(folder: str | Path, device: torch.device | str = "cpu") -> list[Capture]:
    """The calls recorded in ``folder``, in order of their files' names.

    Raises InputError naming the folder or file that is missing, empty or damaged.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no recorded op calls; run with {ENVIRONMENT}={folder} first")
    return [_read(path, torch.device(device)) for path in files]


def _read(path: Path, device: torch.device) -> Capture:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            call = json.loads((file.metadata() or {})["call"])
            values = [
                _strided(file.get_tensor(str(index)), item["strides"]) if "strides" in item else item["value"]
                for index, item in enumerate(call["arguments"])
            ]
            return Capture(call["op"], tuple(values), path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a recorded op call: {type(error).__name__}: {error}") from error


def _describe(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "strides": list(value.stride()), "dtype": str(value.dtype)}
    return {"value": value}


def _strided(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """``tensor`` with these strides again; an expanded axis (stride 0) shares its memory as it did."""
    if tuple(tensor.stride()) == tuple(strides):
        return tensor
    sizes = [1 if stride == 0 else size for size, stride in zip(tensor.shape, strides, strict=True)]
    narrow = tensor[tuple(slice(0, size) for size in sizes)]
    return (
        torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=tensor.device).copy_(narrow).expand(tensor.shape)
    )


def _graph_capture() -> bool:
    """Whether a CUDA graph is being recorded: its tensors hold no values to save yet."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
