"""Clocks: how one call is timed on each device, and the quantiles of many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Sample = Callable[[int], float]  # which input set -> milliseconds per call


class Sampler(Protocol):
    """Prepares a call on rotating input sets for timing."""

    name: str

    def now(self) -> float:
        """Seconds on the wall clock, with the device idle."""

    def prepare(self, call: Callable[..., Any], input_sets: Sequence[tuple[Any, ...]]) -> Sample:
        """Return a function that runs the call once (or many times) and gives milliseconds per call."""


class WallSampler:
    """The wall clock, for the CPU; ``clock`` gives seconds."""

    name = "wall clock"

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def now(self) -> float:
        return self._clock()

    def prepare(self, call: Callable[..., Any], input_sets: Sequence[tuple[Any, ...]]) -> Sample:
        def sample(index: int) -> float:
            inputs = input_sets[index % len(input_sets)]
            start = self._clock()
            call(*inputs)
            return (self._clock() - start) * 1e3

        return sample


class EventSampler:
    """CUDA events around one call on an idle device: from the call to the finished result, launches included."""

    name = "CUDA events"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> float:
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def prepare(self, call: Callable[..., Any], input_sets: Sequence[tuple[Any, ...]]) -> Sample:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def sample(index: int) -> float:
            inputs = input_sets[index % len(input_sets)]
            torch.cuda.synchronize(self._device)
            start.record()
            call(*inputs)
            end.record()
            end.synchronize()
            return start.elapsed_time(end)

        return sample


class GraphSampler(EventSampler):
    """Replays of a CUDA graph that holds the call on each input set in turn: a kernel's time without launch gaps."""

    def __init__(self, device: torch.device, calls: int = 10) -> None:
        super().__init__(device)
        self._calls = calls
        self.name = "CUDA graph replay"

    def prepare(self, call: Callable[..., Any], input_sets: Sequence[tuple[Any, ...]]) -> Sample:
        calls = max(self._calls, len(input_sets))
        graph = capture(lambda: [call(*input_sets[index % len(input_sets)]) for index in range(calls)], self._device)
        replay = super().prepare(graph.replay, [()])
        return lambda index: replay(index) / calls


def capture(call: Callable[[], Any], device: torch.device) -> torch.cuda.CUDAGraph:
    """Record ``call`` as a CUDA graph, after two runs on a side stream so that lazy set-up stays out of it."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def sampler_for(device: torch.device, kernel: bool) -> Sampler:
    """The clock that suits a device: kernels on a GPU as graph replays, else events; the wall clock on the CPU."""
    if device.type != "cuda":
        return WallSampler()
    return GraphSampler(device) if kernel else EventSampler(device)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Linear interpolation between order statistics, as ``numpy.quantile`` does."""
    if not values:
        raise ValueError("values must not be empty")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def drift(values: Sequence[float]) -> float | None:
    """Median of the later half over the median of the earlier half, minus one; None for too few or no time at all."""
    half = len(values) // 2
    earlier = quantile(values[:half], 0.5) if half >= 4 else 0.0
    return quantile(values[half:], 0.5) / earlier - 1.0 if earlier > 0 else None
