"""What every level needs to make its subjects: the device, the model, the batches, and the harness."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Effort, Harness
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait


@dataclass(frozen=True)
class Options:
    """What to measure and how long; times in seconds. ``providers`` and ``subjects`` are patterns.

    ``frames`` are those in a row of the endurance level and of the clips of programs and jobs, ``soak_seconds`` are of
    a live session; None: as long as suits the device. ``source`` and ``driving`` are the files that programs animate,
    both or none.
    """

    device: torch.device
    config: str = "full"
    weights: str | None = None
    batches: tuple[int, ...] | None = None  # None: each level's own
    providers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ("*",)
    seconds: float = 2.0
    budget: float | None = None
    seed: int = 0
    frames: int | None = None
    soak_seconds: float | None = None
    source: Path | None = None
    driving: Path | None = None

    def selected(self, name: str) -> bool:
        """Whether the provider ``name`` is asked for."""
        return _matches(name, self.providers) and not _matches(name, self.exclude)

    def wants(self, subject: str) -> bool:
        """Whether the op or network ``subject`` is asked for."""
        return _matches(subject, self.subjects)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass
class Context:
    """One run's state, shared by its levels."""

    options: Options
    progress: Callable[[str], None] = lambda text: None
    folder: Path | None = None  # scratch files of the job level
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> torch.device:
        return self.options.device

    @cached_property
    def harness(self) -> Harness:
        effort = Effort(seconds=self.options.seconds)
        if self.device.type != "cuda":
            effort = dataclasses.replace(effort, min_rounds=5, max_rounds=50, patience=0.5)
        return Harness(self.device, effort, self.options.selected, progress=self.progress)

    @cached_property
    def model(self) -> LivePortrait:
        """The FP32 baseline; levels copy what they change."""
        if self.options.weights is not None:
            return LivePortrait.from_pretrained(self.options.weights, device=self.device)
        config = LivePortraitConfig.named(self.options.config)
        return LivePortrait.random(seed=self.options.seed, config=config, device=self.device)

    @property
    def batches(self) -> tuple[int, ...]:
        """The batches of levels that measure one frame unless told otherwise."""
        return self.options.batches or (1,)

    @property
    def config(self) -> LivePortraitConfig:
        return self.model.config

    def remaining(self) -> float:
        """Seconds of the budget that are left; infinite without one."""
        if self.options.budget is None:
            return float("inf")
        return self.options.budget - (time.monotonic() - self.started)

    def harness_with(self, **effort: Any) -> Harness:
        """The harness with another effort."""
        return dataclasses.replace(self.harness, effort=dataclasses.replace(self.harness.effort, **effort))
