"""Everything that can be measured: the levels, the ops by their stem, the networks."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType

from benchmarks import ops
from benchmarks.context import Context
from benchmarks.networks import NETWORKS
from benchmarks.work import Measurement, Subject

LEVELS = {
    "ops": "each kernel on its real shapes",
    "networks": "each of the networks",
    "frame": "uint8 driving frame on the device -> uint8 frame on the device",
    "techniques": "PyTorch's means of speed, one after the other",
    "throughput": "frames per second against batch",
    "streams": "concurrent 30 fps streams with p99 under 33 ms",
    "job": "files in, file out, stages in turn or overlapped",
    "claim": "the published claim, measured as it may have been",
    "warm-up": "from import to the first fast frame, in a fresh process",
    "programs": "a checkout of the original, before accelerate, after it, and restored",
    "endurance": "frames in a row, threads that share a model, a live session: times, memory, the same pictures",
}
ONLY_NAMED = ("endurance", "programs")  # not among all: long, or in need of a program
DEFAULT_BATCHES = (1, 2, 4, 8, 16)  # of the throughput level


def measure(level: str) -> Callable[[Context], Iterator[list[Measurement]]]:
    """The level's ``measure``: yields the measurements of one subject after the other."""
    module = importlib.import_module(f"benchmarks.levels.{level.replace('-', '_')}")
    function: Callable[[Context], Iterator[list[Measurement]]] = module.measure
    return function


def op_benchmarks() -> dict[str, ModuleType]:
    """Op name -> its module ``benchmarks/ops/bench_<op>.py``, which has ``subjects(context)``."""
    names = [info.name for info in pkgutil.iter_modules(ops.__path__) if info.name.startswith("bench_")]
    return {name.removeprefix("bench_"): importlib.import_module(f"benchmarks.ops.{name}") for name in sorted(names)}


def op_subjects(context: Context) -> Iterator[Subject]:
    """The subjects of every op that is asked for."""
    for name, module in op_benchmarks().items():
        if context.options.wants(name):
            yield from module.subjects(context)


def names(level: str) -> list[str]:
    """What a level measures, for ``--list``."""
    if level == "ops":
        return list(op_benchmarks())
    return [network.name for network in NETWORKS] if level == "networks" else [level]
