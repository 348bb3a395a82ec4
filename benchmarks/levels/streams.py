"""How many live streams one GPU holds: each offers a frame every 1/30 s, and p99 of the delay stays under 33 ms."""

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
    providers = [_with_streams(provider, context) for provider in frame.of_frame(context.model, context.device)]
    yield context.harness_with(seconds=0.5).measure(subject(context, providers, level="streams"))


def _with_streams(provider: Provider, context: Context) -> Provider:
    inputs = frame.driving(context.config.image_size, 1, 0, context.device)

    def build() -> Candidate:
        candidate = provider.build()

        def step() -> None:
            candidate.call(*inputs)
            if context.device.type == "cuda":
                torch.cuda.synchronize(context.device)

        def extras() -> dict[str, Any]:
            context.progress(f"streams: {provider.name}")
            with torch.no_grad():
                streams, delay = hold(step, TRIAL_SECONDS[context.device.type])
            return {**candidate.extras(), "streams": streams, "p99_delay_ms": delay}

        return Candidate(candidate.call, candidate.fell_back, extras)

    return dataclasses.replace(provider, build=build)


def hold(step: Callable[[], None], seconds: float, clock: Clock | None = None) -> tuple[int, float]:
    """The largest number of streams whose p99 delay stays under the limit, and that delay in ms.

    Zero streams, with the delay of a single one, if even that is too much. More streams than the bare step has time
    for are not tried.
    """
    clock = clock or Clock()
    services = []
    for _ in range(5):
        start = clock.now()
        step()
        services.append(clock.now() - start)
    low, high = 1, max(1, int(1.05 / (FPS * max(min(services), 1e-6))))
    best, best_delay, single = 0, float("nan"), float("nan")
    while low <= high:
        streams = high if best == 0 and high <= 4 else (low + high + 1) // 2
        delay = quantile(delays(step, streams, seconds, clock), 0.99) * 1e3
        if delay < LIMIT_MS:
            best, best_delay, low = streams, delay, streams + 1
        else:
            high, single = streams - 1, delay
    return (best, best_delay) if best else (0, single)


def delays(step: Callable[[], None], streams: int, seconds: float, clock: Clock) -> list[float]:
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
        step()
        results.append(clock.now() - arrival)
        heapq.heappush(arrivals, (arrival + 1 / FPS, stream))
