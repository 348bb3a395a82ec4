"""Measure a subject: build every provider, warm up, hold against FP32, then time all of them interleaved."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Sample, Sampler, drift, quantile, sampler_for
from benchmarks.work import (
    Candidate,
    Inputs,
    Measurement,
    Provider,
    Subject,
    Unavailable,
    clone,
    relative_error,
    tensors,
)

ROTATION_OF_L2 = 6  # FP32 input sets together hold this many times the L2, so FP16 ones half as many
MOST_INPUT_SETS = 48
MEBIBYTE = 1 << 20

# The least tolerance is a few units in the last place. Beyond it a provider may err TOLERANCE_FACTOR times as much as
# PyTorch's own eager arithmetic in that precision (TF32: in FP16) on the same inputs; FP32 not at all. A yardstick
# beyond YARDSTICK_CAP is broken itself and loosens nothing.
TOLERANCE_FLOOR = {"fp32": 1e-4, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.6e-2}
TOLERANCE_FACTOR = 1.5
YARDSTICK_OF = {"tf32": "fp16", "fp16": "fp16", "bf16": "bf16"}
YARDSTICK_CAP = 0.05


@dataclass(frozen=True)
class Effort:
    """How long to measure a subject.

    ``warmup`` first calls, fewer (but two) once ``patience`` seconds are spent on them after the very first; then
    rounds over all providers until ``seconds`` are over, within the two bounds.
    """

    seconds: float = 2.0
    min_rounds: int = 10
    max_rounds: int = 300
    warmup: int = 10
    patience: float = 30.0


@dataclass
class Harness:
    """Measures subjects on one device; ``selected`` says which providers to report."""

    device: torch.device
    effort: Effort = field(default_factory=Effort)
    selected: Callable[[str], bool] = lambda name: True
    sampler: Callable[[torch.device, bool], Sampler] = sampler_for
    progress: Callable[[str], None] = lambda text: None

    def measure(self, subject: Subject) -> list[Measurement]:
        """One measurement per selected provider, in the subject's order."""
        sampler = self.sampler(self.device, subject.kernel)
        with torch.no_grad():
            sets = self._input_sets(subject)
            with strict_fp32():
                with count_flops() as counted:
                    truths = [clone(subject.compared(subject.reference(*sets[0])))]
                if sets[1]:  # without inputs it would be the same call again
                    truths.append(clone(subject.compared(subject.reference(*sets[1]))))
            flops = counted() if subject.flops is None else subject.flops
            trials = [
                _Trial(subject, provider, flops, self.selected(provider.name))
                for provider in subject.providers
                if self.selected(provider.name) or provider.yardstick
            ]
            for trial in trials:
                self.progress(f"{subject.name} x{subject.batch}: {trial.provider.name}")
                trial.warm_up(sampler, sets, truths, self)
            judge(trials, subject.floor)
            self._sample(sampler, sets, trials)
        for trial in trials:
            trial.finish()
        return [trial.result for trial in trials if trial.selected]

    def _input_sets(self, subject: Subject) -> list[Inputs]:
        sets = [subject.inputs(0), subject.inputs(1)]
        if subject.kernel and self.device.type == "cuda":
            cache = torch.cuda.get_device_properties(self.device).L2_cache_size
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors(sets[0]))
            wanted = min(MOST_INPUT_SETS, -(-ROTATION_OF_L2 * cache // max(size, 1)))
            sets += [subject.inputs(seed) for seed in range(2, wanted)]
        return sets

    def _sample(self, sampler: Sampler, sets: list[Inputs], trials: list[_Trial]) -> None:
        ready = [trial for trial in trials if trial.selected and trial.prepare(sampler, sets)]
        self.progress("timing " + ", ".join(trial.provider.name for trial in ready))
        deadline = time.monotonic() + self.effort.seconds
        for index in range(self.effort.max_rounds):
            if not ready or (index >= self.effort.min_rounds and time.monotonic() > deadline):
                break
            for trial in ready:
                trial.take(index)


class _Trial:
    """One provider on one subject, from building to the finished measurement."""

    def __init__(self, subject: Subject, provider: Provider, flops: int, selected: bool) -> None:
        self.provider, self.selected = provider, selected
        self.candidate: Candidate | None = None
        self.samples: list[float] = []
        self._sample: Sample | None = None
        self._compared = subject.compared
        self.result = Measurement(
            level=subject.level,
            subject=subject.name,
            shape=subject.shape,
            batch=subject.batch,
            provider=provider.name,
            precision=provider.precision,
            status="ok",
            flops=flops,
            bytes=subject.bytes_in(provider.precision),
            frames=subject.frames,
        )

    def stop(self, status: str, reason: str) -> None:
        """Leave the comparison: the measurement keeps the reason and loses every time."""
        result = self.result
        result.status, result.reason = status, reason
        result.warmup_ms, result.build_s, result.timing = [], None, None
        self.candidate, self._sample = None, None

    def warm_up(self, sampler: Sampler, sets: list[Inputs], truths: list[Any], harness: Harness) -> None:
        """Build, make the first calls, and note their times, the memory and the error; unselected, the error alone."""
        memory, effort = Memory(harness.device), harness.effort
        try:
            start = sampler.now()
            self.candidate = candidate = self.provider.build()
            self.result.build_s = sampler.now() - start
            if self.selected:
                warmup = self.result.warmup_ms
                while len(warmup) < 2 or (len(warmup) < effort.warmup and sum(warmup[1:]) < effort.patience * 1e3):
                    start = sampler.now()
                    candidate.call(*sets[0])
                    warmup.append((sampler.now() - start) * 1e3)
                self.result.peak_mb, self.result.steady_mb = memory.grown()
            call = candidate.call if self.selected else candidate.answer or candidate.call
            # Two different inputs: a graph that replays stale ones would pass the first.
            answers = (clone(self._compared(call(*inputs))) for inputs in sets[: len(truths)])
            errors = [relative_error(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
            self.result.relative_error = max(errors)
            if reason := candidate.fell_back():
                self.stop("fell-back", reason)
        except Unavailable as reason:
            self.stop("skipped", str(reason))
        except Exception as error:  # a provider that breaks must not end the run of the others
            self.stop("skipped", one_line(error))

    def prepare(self, sampler: Sampler, sets: list[Inputs]) -> bool:
        """Get ready for sampling; False when this provider is out."""
        if self.candidate is None:
            return False
        try:
            self._sample = sampler.prepare(self.candidate.call, sets)
            self._sample(0)
        except Exception as error:
            self.stop("skipped", f"cannot be timed by {sampler.name}: {one_line(error)}")
            return False
        self.result.timing = sampler.name
        return True

    def take(self, index: int) -> None:
        if self._sample is None:
            return
        try:
            self.samples.append(self._sample(index))
        except Exception as error:
            self.stop("skipped", f"failed while timed: {one_line(error)}")

    def finish(self) -> None:
        """Turn samples into quantiles, unless a provider fell back while it was timed."""
        if self.candidate is not None and (reason := self.candidate.fell_back()):
            self.stop("fell-back", reason)
        result, samples = self.result, self.samples
        if self.candidate is None or not samples:
            return
        result.extras = dict(self.candidate.extras())
        result.samples = len(samples)
        result.median_ms, result.drift = quantile(samples, 0.5), drift(samples)
        result.p20_ms, result.p80_ms, result.p99_ms = (quantile(samples, part) for part in (0.2, 0.8, 0.99))
        self.candidate = None


def judge(trials: list[_Trial], floor: float = 0.0) -> None:
    """Set each provider's tolerance by PyTorch's own arithmetic in its precision, and refuse those beyond it."""
    for trial in trials:
        result, precision = trial.result, trial.provider.precision
        own = TOLERANCE_FACTOR * _yardstick(trials, YARDSTICK_OF.get(precision))
        result.tolerance = max(own, TOLERANCE_FLOOR[precision], floor)
        if trial.provider.eager_pytorch:
            result.tolerance = max(result.tolerance, YARDSTICK_CAP)
        if trial.candidate is None or result.relative_error is None:
            continue
        if not result.relative_error <= result.tolerance:
            trial.stop("refused", f"relative error {result.relative_error:.2e} exceeds {result.tolerance:.2e}")


def _yardstick(trials: list[_Trial], precision: str | None) -> float:
    """The largest error of the sound yardsticks in ``precision``."""
    own = [
        trial.result.relative_error
        for trial in trials
        if trial.provider.yardstick and trial.provider.precision == precision and trial.result.status == "ok"
    ]
    return max((error for error in own if error is not None and error <= YARDSTICK_CAP), default=0.0)


class Memory:
    """GPU memory that grows from here on: the peak of live tensors, and what the process keeps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._live, self._held = self._now(reset=True)

    def _now(self, reset: bool = False) -> tuple[int, int]:
        if self._device.type != "cuda":
            return 0, 0
        torch.cuda.synchronize(self._device)
        gc.collect()
        torch.cuda.empty_cache()
        if reset:
            torch.cuda.reset_peak_memory_stats(self._device)
        return torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device)

    def grown(self) -> tuple[float | None, float | None]:
        """(peak, steady) growth in MiB; None on the CPU, where the allocator keeps no count."""
        if self._device.type != "cuda":
            return None, None
        peak = torch.cuda.max_memory_allocated(self._device)
        _, held = self._now()
        return (peak - self._live) / MEBIBYTE, (held - self._held) / MEBIBYTE


@contextlib.contextmanager
def strict_fp32() -> Iterator[None]:
    """No TF32 inside: the truth is FP32 arithmetic."""
    convolution, product = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolution, product


@contextlib.contextmanager
def count_flops() -> Iterator[Callable[[], int]]:
    """Count convolutions and matrix products inside; the result is a function that gives the total."""
    with FlopCounterMode(display=False) as counter:
        yield counter.get_total_flops


def one_line(error: BaseException) -> str:
    """An exception as one short line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]
