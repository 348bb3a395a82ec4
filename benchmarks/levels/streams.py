"""How many live streams one GPU holds: each offers a frame every 1/30 s, and p99 of the delay stays under 33 ms.

One thread serves them, first come, first served. Of lpkernels each stream has its own animator; they share one model.
"""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import frame
from benchmarks.context import Context
from benchmarks.levels.frame import subject
from benchmarks.timing import quantile
from benchmarks.work import Candidate, Measurement, Provider

FPS = 30.0
LIMIT_MS = 33.0
LOST_S = 1.0  # a queue this long never recovers
TRIAL_SECONDS = {"cuda": 2.0, "cpu": 1.0}


@dataclass(frozen=True)
class Clock:
    """Time and waiting in seconds, replaceable in tests."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Measure the frame as the frame level does, then find the number of streams of every provider that is right."""
    offered = frame.of_frame(context.model, context.device, every_form=False)
    providers = [_with_streams(provider, context) for provider in offered]
    yield context.harness_with(seconds=0.5).measure(subject(context, providers, level="streams"))


def _with_streams(provider: Provider, context: Context) -> Provider:
    inputs = frame.driving(context.config.image_size, 1, 0, context.device)

    def build() -> Candidate:
        candidate = provider.build()
        calls = [candidate.call]

        def make_ready(streams: int) -> None:
            while candidate.another is not None and len(calls) < streams:
                call = candidate.another()
                call(*inputs)
                calls.append(call)

        def step(stream: int) -> None:
            calls[stream % len(calls)](*inputs)
            if context.device.type == "cuda":
                torch.cuda.synchronize(context.device)

        def extras() -> dict[str, Any]:
            context.progress(f"streams: {provider.name}")
            with torch.no_grad():
                streams, delay = hold(step, TRIAL_SECONDS[context.device.type], make_ready=make_ready)
            return {**candidate.extras(), "streams": streams, "p99_delay_ms": delay}

        return dataclasses.replace(candidate, extras=extras)

    return dataclasses.replace(provider, build=build)


def hold(
    step: Callable[[int], None],
    seconds: float,
    clock: Clock | None = None,
    make_ready: Callable[[int], None] = lambda streams: None,
) -> tuple[int, float]:
    """The largest number of streams whose p99 delay stays under the limit, and that delay in ms.

    Zero streams, with the delay of a single one, if even that is too much. More streams than the bare step has time
    for are not tried; those that ``make_ready`` finds no GPU memory for are not held.

    Args:
        step: serve a frame of the stream of that index.
        make_ready: called with a number of streams before their trial.
    """
    clock = clock or Clock()
    services = []
    for _ in range(5):
        start = clock.now()
        step(0)
        services.append(clock.now() - start)
    low, high = 1, max(1, int(1.05 / (FPS * max(min(services), 1e-6))))
    best, best_delay, single = 0, float("nan"), float("nan")
    while low <= high:
        streams = high if best == 0 and high <= 4 else (low + high + 1) // 2
        try:
            make_ready(streams)
        except torch.OutOfMemoryError:
            high = streams - 1
            continue
        delay = quantile(delays(step, streams, seconds, clock), 0.99) * 1e3
        if delay < LIMIT_MS:
            best, best_delay, low = streams, delay, streams + 1
        else:
            high, single = streams - 1, delay
    return (best, best_delay) if best else (0, single)


def delays(step: Callable[[int], None], streams: int, seconds: float, clock: Clock) -> list[float]:
    """Seconds from each frame's arrival to its result, served first come, first served, in real time.

    The streams start evenly spread over one period.
    """
    start = clock.now()
    arrivals = [(start + index / streams / FPS, index) for index in range(streams)]
    heapq.heapify(arrivals)
    results: list[float] = []
    while True:
        arrival, stream = heapq.heappop(arrivals)
        if results and (arrival - start > seconds or results[-1] > LOST_S):
            return results
        if (wait := arrival - clock.now()) > 0:
            clock.sleep(wait)
        step(stream)
        results.append(clock.now() - arrival)
        heapq.heappush(arrivals, (arrival + 1 / FPS, stream))
