"""Which op and backend every group of layers will run on a device, and why the backends before it are passed over."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels import ops
from lpkernels.fused._layers import Layer
from lpkernels.ops import Choice
from lpkernels.ops._op import Signature, spacing

Row = tuple[str, str, Choice]
"""A group of layers, its op, and the backend with the reasons against others."""


def rows(name: str, network: nn.Module, device_type: str, *inputs: Any) -> list[Row]:
    """One row per layer of ``network``, in the order they run in on ``inputs``, which lie on the meta device.

    The network runs on tensors without memory, by the reference's arithmetic: only shapes come about.
    """
    calls: list[tuple[str, str, tuple[Signature, int]]] = []

    def note(layer_name: str) -> Callable[..., None]:
        def hook(layer: Layer, args: Any, kwargs: Any, output: Any) -> None:
            tensors = _tensors(layer.arguments(*args, **kwargs), output)
            signature = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)
            calls.append((f"{name}.{layer_name}", layer.op, (signature, spacing(tensors))))

        return hook

    layers = [(key, module) for key, module in network.named_modules() if isinstance(module, Layer)]
    handles = [layer.register_forward_hook(note(key), with_kwargs=True) for key, layer in layers]
    on_meta = {key: tensor.to("meta") for key, tensor in [*network.named_parameters(), *network.named_buffers()]}
    try:
        with ops.use_backend("ref"), torch.no_grad():
            torch.func.functional_call(network, on_meta, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [(layer, op, ops.registry()[op].choose(device_type, *call)) for layer, op, call in calls]


def named(name: str, names: Sequence[str], device_type: str) -> list[Row]:
    """Rows of ops that no layer holds, for arguments of any shape."""
    return [(name, op, ops.registry()[op].choose(device_type)) for op in names]


def _tensors(arguments: dict[str, Any], output: Any) -> list[Tensor]:
    """What an op chooses by: its tensors, with the answer where ``out`` is made by the op."""
    if "out" in arguments and arguments["out"] is None:
        arguments["out"] = output
    return [value for value in arguments.values() if isinstance(value, Tensor)]


def table(found: list[Row]) -> str:
    """Rows as text: numbered layers of the same op and choice are one line."""
    groups: dict[tuple[str, str, str, str], int] = {}
    for name, op, choice in found:
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in choice.passed.items())
        key = (re.sub(r"\.\d+", ".*", name), op, choice.backend or "none", reasons)
        groups[key] = groups.get(key, 0) + 1
    lines = [(f"{name} ({count})" if count > 1 else name, *rest) for (name, *rest), count in groups.items()]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line[:3], widths, strict=True)) + f"  {line[3]}".rstrip()
        for line in lines
    )
