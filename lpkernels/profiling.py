"""Ranges inside a plain network, and a run of frames under a profiler: what ``lpkernels profile`` is made of."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels import trace
from lpkernels.errors import InputError

PREFIX = f"{trace.DOMAIN}::"


@contextlib.contextmanager
def annotated(model: nn.Module, depth: int = 3) -> Iterator[None]:
    """Inside the block every module of ``model`` from two to ``depth`` names deep runs in an op range of its name.

    Gives the published networks the ranges that lpkernels' own ops have, so that two timelines line up. The
    ranges carry the shape of the first tensor.
    """
    handles = []
    for name, module in model.named_modules():
        if 2 <= name.count(".") + 1 <= depth:
            handles += _hooks(name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(name: str, module: nn.Module) -> list[Any]:
    entered: list[contextlib.AbstractContextManager[None]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        shape = next((tuple(value.shape) for value in values if isinstance(value, Tensor)), ())
        # The network's own name is the range around: the op's name starts below it.
        manager = trace.range(name.split(".", 1)[1], "op", shape=shape)
        manager.__enter__()
        entered.append(manager)

    def after(*ignored: Any) -> None:
        entered.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, always_call=True),
    ]


@contextlib.contextmanager
def ranges() -> Iterator[None]:
    """Emit ranges inside the block, whether or not a profiler is attached."""
    before = trace.enabled()
    trace.enable()
    try:
        yield
    finally:
        trace.enable(before)


def torch_trace(step: Callable[[], object], frames: int, path: Path, device: torch.device) -> None:
    """Run ``step`` ``frames`` times under torch.profiler and write a trace that Perfetto opens.

    Raises InputError if the file cannot be written.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with ranges(), torch.profiler.profile(activities=activities) as profiler:
        for _ in range(frames):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(part))
        shutil.move(part, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot write the trace: {error}") from error


@dataclass(frozen=True)
class Range:
    """One of our ranges in a trace; times in microseconds."""

    category: str
    name: str
    start: float
    end: float
    thread: object

    def holds(self, other: Range) -> bool:
        """Whether ``other`` lies inside this range on the same thread."""
        return self.thread == other.thread and self.start <= other.start and other.end <= self.end


def read_ranges(path: Path) -> list[Range]:
    """Our ranges of a torch-profiler trace, by start. Raises InputError if it is no such trace."""
    found = []
    for event in read_events(path):
        name = str(event.get("name", ""))
        # A CUDA trace shows each range a second time, on the device's own track.
        if event.get("cat") == "user_annotation" and name.startswith(PREFIX):
            category, _, text = name.removeprefix(PREFIX).partition("::")
            found.append(Range(category, text, event["ts"], event["ts"] + event["dur"], event.get("tid")))
    return sorted(found, key=lambda item: (item.start, -item.end))


def read_kernels(path: Path) -> list[Range]:
    """The GPU kernels of a torch-profiler trace, by start; none in a trace of the CPU."""
    kernels = (event for event in read_events(path) if event.get("cat") == "kernel")
    found = [Range("kernel", event["name"], event["ts"], event["ts"] + event["dur"], event["tid"]) for event in kernels]
    return sorted(found, key=lambda item: item.start)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The complete events of a torch-profiler trace. Raises InputError if it is no such trace."""
    try:
        return [event for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a torch.profiler trace: {error}") from error


def nesting(found: list[Range]) -> dict[str, int]:
    """How many ranges of each category there are, and how many networks lie in a frame and ops in a network."""
    frames, networks, ops = ([item for item in found if item.category == name] for name in trace.CATEGORIES)
    return {
        "frames": len(frames),
        "networks": len(networks),
        "ops": len(ops),
        "networks in a frame": sum(any(outer.holds(inner) for outer in frames) for inner in networks),
        "ops in a network": sum(any(outer.holds(inner) for outer in networks) for inner in ops),
    }
