"""Loading of the compiled parts: the op library (stable ABI) and lpkernels._C (build facts, kernel attributes).

Importing never fails: what could not be loaded is reported by ``status`` and by ``lpkernels doctor``, with the reason.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class LibStatus:
    """Where the op library is, or why it is not loaded."""

    path: Path | None
    error: str | None


@functools.cache
def status() -> LibStatus:
    """Load the op library once; the answer says whether and why not."""
    found = sorted(path for pattern in ("_ops*.so", "_ops*.pyd") for path in _FOLDER.glob(pattern))
    if not found:
        return LibStatus(
            None, "the op library is not built: reinstall with a C++ compiler, pip install --no-build-isolation ."
        )
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return LibStatus(None, f"{found[0].name} cannot be loaded, rebuild it against this torch: {_first_line(error)}")
    return LibStatus(found[0], None)


@functools.cache
def build_info() -> dict[str, str]:
    """Version, torch, CUDA, architectures and compiler of the build; ``{"error": reason}`` if there is none."""
    try:
        from lpkernels import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return {"error": f"lpkernels._C is not built: {_first_line(error)}"}
    return dict(_C.build_info())


def kernel_attributes() -> list[dict[str, Any]]:
    """Name, threads, registers, shared and local bytes, and blocks per multiprocessor of every CUDA kernel.

    As the driver has it for the current device; ``error`` says why that cannot run a kernel, all else is zero then.
    Empty where no op library or no CUDA build is loaded.
    """
    path = status().path
    if path is None or not build_info().get("cuda"):
        return []
    from lpkernels import _C  # type: ignore[attr-defined]

    library = ctypes.CDLL(str(path))
    addresses = [_address(library, name) for name in ("lpkernels_kernel_count", "lpkernels_kernel_attributes")]
    return list(_C.kernel_attributes(*addresses))


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
