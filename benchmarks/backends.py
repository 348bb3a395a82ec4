"""Which backends ops really run on, and how to have them chosen as on a GPU that is no Hopper."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from lpkernels import ops
from lpkernels.ops._op import NO_HOPPER

Seen = dict[str, set[str]]
"""Op -> the backends it ran on."""


@contextlib.contextmanager
def without_hopper() -> Iterator[None]:
    """Inside, ops choose as if there were no kernels for Hopper alone; the environment is put back afterwards."""
    before = os.environ.get(NO_HOPPER)
    os.environ[NO_HOPPER] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_HOPPER]
        else:
            os.environ[NO_HOPPER] = before


def same_without_hopper(device: torch.device) -> str | None:
    """Why ``without_hopper`` would change nothing on ``device``; None where some op would run on another backend."""
    if device.type != "cuda":
        return "kernels for Hopper run on a CUDA device only"
    usual = _choices(device.type)
    with without_hopper():
        changed = usual != _choices(device.type)
    return None if changed else "no kernel for Hopper alone can run here: this would be the same again"


def _choices(device_type: str) -> dict[str, str | None]:
    return {name: op.choose(device_type).backend for name, op in ops.registry().items()}


@contextlib.contextmanager
def watched(seen: Seen) -> Iterator[None]:
    """Note the backend of every op call inside in ``seen``: what ran, not what was expected to."""
    originals = {name: dict(op.backends) for name, op in ops.registry().items()}
    try:
        for name, op in ops.registry().items():
            for backend in originals[name].values():
                run = _noting(backend.run, seen.setdefault(name, set()), backend.name)
                op.backends[backend.name] = dataclasses.replace(backend, run=run)
        yield
    finally:
        for name, op in ops.registry().items():
            op.backends.update(originals[name])
        for name in [name for name, backends in seen.items() if not backends]:
            del seen[name]


def _noting(run: Callable[..., Any], backends: set[str], name: str) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        backends.add(name)
        return run(*args)

    return noted


def by_op(seen: Mapping[str, set[str]]) -> dict[str, str]:
    """For a record: op -> its backends."""
    return {name: ", ".join(sorted(backends)) for name, backends in sorted(seen.items())}


def by_backend(seen: Mapping[str, set[str]]) -> str:
    """For a reader: each backend with its ops; ``triton: conv_act, conv_img; torch: mask_conv3d``."""
    ordered = [name for name in ops._op.BACKENDS if any(name in backends for backends in seen.values())]
    return "; ".join(f"{name}: {', '.join(sorted(op for op in seen if name in seen[op]))}" for name in ordered)
