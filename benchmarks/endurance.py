"""Long runs of one model: what they are held against, and what is kept of their times and their memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks import memory
from benchmarks.context import Context
from benchmarks.frame import clip
from benchmarks.harness import TOLERANCE_FLOOR, one_line, strict_fp32
from benchmarks.levels.frame import EIGHT_BIT_FLOOR
from benchmarks.own import FORMS
from benchmarks.timing import drift, quantile
from benchmarks.work import Measurement, relative_error
from lpkernels.animate.animator import Animator
from lpkernels.animate.image import Frame
from lpkernels.animate.portrait import draw_portrait
from lpkernels.fused.convert import optimize
from lpkernels.models.portrait_model import PortraitModel

LEVEL = "endurance"
CLIP = {"cuda": 16, "cpu": 4}  # different frames
PROVIDER = {"cuda": "lpkernels-fp16", "cpu": "lpkernels-fp32"}


@dataclass(frozen=True)
class Case:
    """The model that runs long, its driving clip, and the pictures that a short run makes of it.

    Attributes:
        provider: name of the optimized form.
        precision: its arithmetic.
        source: uint8 (S, S, 3), the portrait.
        frames: the drawn clip, uint8 (S, S, 3) arrays; few of them on the CPU.
        expected: the animated picture of each frame, the first being the reference of relative motion.
        error: their relative error against the published networks in FP32.
    """

    provider: str
    precision: str
    device: torch.device
    model: PortraitModel[Any]
    source: Frame
    frames: tuple[Frame, ...]
    expected: tuple[Frame, ...]
    error: float

    @classmethod
    def of(cls, context: Context, provider: str) -> Case:
        """Optimize the context's model. Raises Unavailable where the form cannot run."""
        form = FORMS[provider]
        form.require(context.device)
        model = optimize(context.model, form.precision)
        size = context.config.image_size
        source, frames = draw_portrait(size), clip(size)[: CLIP[context.device.type]]
        expected = animated(model, source, frames)
        with strict_fp32():
            truth = animated(context.model, source, frames)
        error = relative_error(*(torch.from_numpy(np.stack(pictures)).float() for pictures in (expected, truth)))
        return cls(
            provider, form.works_in(context.device), context.device, model, source, frames, tuple(expected), error
        )

    def measurement(self, part: str, shape: str, frames: int = 1) -> Measurement:
        """An empty record of one part."""
        tolerance = max(TOLERANCE_FLOOR[self.precision], EIGHT_BIT_FLOOR)
        return Measurement(
            LEVEL,
            part,
            shape,
            1,
            self.provider,
            self.precision,
            "ok",
            timing="wall clock",
            relative_error=self.error,
            tolerance=tolerance,
            frames=frames,
        )


def animated(model: PortraitModel[Any], source: Frame, frames: Sequence[Frame]) -> list[Frame]:
    """The pictures that an animator of its own makes of ``frames``."""
    animator = Animator(model, source)
    return [animator.step(frame) for frame in frames]


@dataclass
class Marks:
    """Memory ``before`` a run, at a ``tenth`` of it, and at its ``end``."""

    device: torch.device
    samples: dict[str, memory.Sample] = field(default_factory=dict)

    def take(self, moment: str) -> None:
        """Read the memory now; the first time counts."""
        if moment not in self.samples:
            self.samples[moment] = memory.read(self.device)

    def facts(self) -> dict[str, Any]:
        """For the record: the samples in MiB, what grew from the first to the last, and after the first tenth."""
        before, tenth, end = (self.samples[moment] for moment in ("before", "tenth", "end"))
        return {
            "memory": self.samples,
            "growth_mb": memory.growth(before, end),
            "growth_after_tenth_mb": memory.growth(tenth, end),
        }


def summary(times: Sequence[float]) -> dict[str, float]:
    """Quantiles and maximum of times in ms."""
    named = {"median_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    return {**{name: quantile(times, part) for name, part in named.items()}, "max_ms": max(times)}


def fill(result: Measurement, times: Sequence[float], first: Sequence[float], last: Sequence[float]) -> None:
    """Put times in ms, and those of a run's ``first`` and ``last`` part, into its record."""
    result.samples, result.drift = len(times), drift(times)
    result.median_ms = quantile(times, 0.5)
    result.p20_ms, result.p80_ms, result.p99_ms = (quantile(times, part) for part in (0.2, 0.8, 0.99))
    early, late = summary(first), summary(last)
    result.extras |= {"first": early, "last": late, "slower_by": late["median_ms"] / early["median_ms"] - 1.0}


def tenths(times: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The first and the last tenth, at least one each."""
    count = max(1, len(times) // 10)
    return times[:count], times[-count:]


def refuse(result: Measurement, reason: str) -> None:
    """Take the times out of a record of a run that went wrong; what else is known of it stays."""
    result.status, result.reason, result.timing = "refused", reason, None
    result.median_ms = result.p20_ms = result.p80_ms = result.p99_ms = None


def failed(result: Measurement, error: Exception) -> Measurement:
    """The record of a run that ended with an error."""
    refuse(result, f"failed: {one_line(error)}")
    return result


def in_a_row(case: Case, count: int) -> Measurement:
    """``count`` frames through one animator, arrays in and out; each is compared with the first of the same input."""
    result = case.measurement("frames", f"{count} frames in a row, arrays in and out")
    animator, marks = Animator(case.model, case.source), Marks(case.device)
    firsts = [animator.step(frame) for frame in case.frames]
    inputs = itertools.islice(itertools.cycle(range(len(case.frames))), count)
    times = np.zeros(count)
    differing = 0
    marks.take("before")
    for index, which in enumerate(inputs):
        times[index], picture = _timed(animator, case.frames[which])
        differing += not np.array_equal(picture, firsts[which])
        if index + 1 == max(1, count // 10):
            marks.take("tenth")
    marks.take("end")
    last = animator.step(case.frames[0])
    result.extras = {
        "frames": count,
        "differing": differing,
        "last_equals_first": bool(np.array_equal(last, firsts[0])),
        **marks.facts(),
    }
    in_ms = (times * 1e3).tolist()
    fill(result, in_ms, *tenths(in_ms))
    if differing or not result.extras["last_equals_first"]:
        refuse(result, f"{differing} of {count} pictures differ from the first of the same frame")
    return result


def _timed(animator: Animator, frame: Frame) -> tuple[float, Frame]:
    """Seconds from the call to the picture in host memory, and the picture."""
    start = perf_counter()
    picture = animator.step(frame)
    return perf_counter() - start, picture
