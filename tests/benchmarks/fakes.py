"""A clock that only providers move, and subjects made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Effort, Harness
from benchmarks.records import Records, Run
from benchmarks.timing import WallSampler
from benchmarks.work import Candidate, Measurement, Provider, Subject
from lpkernels.models.config import LivePortraitConfig

CPU = torch.device("cpu")


class FakeClock:
    """Seconds that pass when ``advance`` says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


def micro_config() -> LivePortraitConfig:
    """Every kind of layer, as small as the networks can be built: tests of the way, not of speed."""
    tiny = LivePortraitConfig.tiny()
    replace = dataclasses.replace
    return replace(
        tiny,
        image_size=32,
        appearance_feature_extractor=replace(
            tiny.appearance_feature_extractor, block_expansion=4, max_features=16, reshape_channel=4, reshape_depth=4
        ),
        motion_extractor=replace(tiny.motion_extractor, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)),
        warping_module=replace(
            tiny.warping_module,
            block_expansion=4,
            max_features=16,
            reshape_channel=4,
            dense_motion_params=replace(
                tiny.warping_module.dense_motion_params, block_expansion=4, max_features=16, reshape_depth=4
            ),
        ),
        spade_generator=replace(tiny.spade_generator, block_expansion=4, max_features=16, out_channels=4),
    )


def double(x: Tensor) -> Tensor:
    """The work of the fake subject."""
    return 2 * x


def provider(
    name: str,
    clock: FakeClock,
    milliseconds: float,
    function: Callable[..., Any] = double,
    *,
    precision: str = "fp32",
    yardstick: bool = False,
    eager_pytorch: bool = False,
    fell_back: Callable[[], str | None] = lambda: None,
    calls: list[str] | None = None,
    answer: Callable[..., Any] | None = None,
) -> Provider:
    """A provider that takes ``milliseconds`` on the fake clock."""

    def call(x: Tensor) -> Any:
        clock.advance(milliseconds / 1e3)
        if calls is not None:
            calls.append(name)
        return function(x)

    return Provider(name, precision, lambda: Candidate(call, fell_back, answer=answer), yardstick, eager_pytorch)


def subject(*providers: Provider, **fields: Any) -> Subject:
    """Doubling eight random numbers."""
    values = {
        "level": "ops",
        "name": "double",
        "shape": "8",
        "inputs": lambda seed: (torch.randn(8, generator=torch.Generator().manual_seed(seed)),),
        "reference": double,
        "elements": 16,
        "flops": 8,
    }
    return Subject(providers=list(providers), **{**values, **fields})


def harness(clock: FakeClock, rounds: int = 12, **fields: Any) -> Harness:
    """A harness on the fake clock."""
    effort = fields.pop("effort", Effort(seconds=0.0, min_rounds=rounds, max_rounds=rounds))
    return Harness(CPU, effort, sampler=lambda device, kernel: WallSampler(clock.now), **fields)


def measured(provider: str = "baseline-amp", median_ms: float = 2.0, **fields: Any) -> Measurement:
    """A good measurement with a spread of 2 %."""
    values: dict[str, Any] = {
        "level": "frame",
        "subject": "frame",
        "shape": "64x64 -> 128x128",
        "batch": 1,
        "provider": provider,
        "precision": "fp16",
        "status": "ok",
        "timing": "wall clock",
        "samples": 20,
        "median_ms": median_ms,
        "p20_ms": 0.99 * median_ms,
        "p80_ms": 1.01 * median_ms,
        "p99_ms": 1.1 * median_ms,
        "drift": 0.0,
        "build_s": 0.5,
        "warmup_ms": [50.0, 5.0, *[median_ms] * 8],
        "relative_error": 1e-3,
        "tolerance": 2e-3,
        "flops": 10**9,
        "bytes": 10**6,
    }
    return Measurement(**{**values, **fields})


def records(*measurements: Measurement) -> Records:
    """A result set of one run."""
    environment = {"device": "Fake GPU", "torch": "2.11", "cuda": "13.0", "date": "2026-01-01", "commit": "abc"}
    ceilings = {"copy_gbps": 4000.0, "fp32_tflops": 50.0, "fp16_tflops": 600.0}
    return Records([Run(environment, ceilings, "tiny")], list(measurements))
