"""What is measured: a subject (one piece of work on one shape) and the providers that can do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

ITEM_SIZE = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp8": 1, "int8": 1}

Inputs = tuple[Any, ...]


class Unavailable(Exception):  # noqa: N818 - a state of the provider, not a failure of the run
    """The provider cannot run here; the message is the reason that is reported."""


@dataclass
class Candidate:
    """A provider made ready for one subject."""

    call: Callable[..., Any]
    fell_back: Callable[[], str | None] = lambda: None  # asked after warm-up and after timing: the reason, or None
    extras: Callable[[], Mapping[str, Any]] = dict  # facts to keep in the record, read after timing
    another: Callable[[], Callable[..., Any]] | None = None  # one more user of the same weights, with its own state
    answer: Callable[..., Any] | None = None  # shorter, with the same answer: for a provider that is only compared


@dataclass(frozen=True)
class Provider:
    """One way to do a subject's work.

    ``precision`` names the ceiling and the tolerance it is held against. A ``yardstick`` is PyTorch's own reduced
    precision: its error sets the tolerance of the others in that precision. ``eager_pytorch`` is PyTorch too, with
    other kernels: its error is shown and loosens nothing, and only a broken result is refused.
    """

    name: str
    precision: str
    build: Callable[[], Candidate]
    yardstick: bool = False
    eager_pytorch: bool = False


@dataclass(frozen=True)
class Subject:
    """A piece of work: inputs, the FP32 truth, the providers, and the fewest operations and bytes it takes.

    ``elements`` counts values in the provider's precision that must be read or written once; ``fixed_bytes`` adds the
    tensors whose dtype no provider changes. ``flops`` (a multiply-add is two) is counted on the reference when None.
    ``frames`` is how many frames one call animates; ``floor`` a least tolerance, for results of few bits. A ``kernel``
    is timed as a CUDA graph of many calls on rotating inputs; anything else one call at a time. ``compared`` takes what
    is held against the reference out of an answer, the reference's too.
    """

    level: str
    name: str
    shape: str
    inputs: Callable[[int], Inputs]
    reference: Callable[..., Any]
    providers: Sequence[Provider]
    elements: int = 0
    fixed_bytes: int = 0
    flops: int | None = None
    batch: int = 1
    frames: int = 1
    kernel: bool = False
    floor: float = 0.0
    compared: Callable[[Any], Any] = lambda answer: answer

    def bytes_in(self, precision: str) -> int:
        """The fewest bytes the work moves through memory at ``precision``."""
        return self.elements * ITEM_SIZE[precision] + self.fixed_bytes


@dataclass
class Measurement:
    """What came out for one provider of one subject. Times exist only for status ``ok``; units are in the names."""

    level: str
    subject: str
    shape: str
    batch: int
    provider: str
    precision: str
    status: str  # ok, refused (wrong), fell-back, skipped
    reason: str | None = None
    timing: str | None = None
    samples: int = 0
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    p99_ms: float | None = None
    drift: float | None = None  # median of the later half of the samples over the earlier half, minus one
    build_s: float | None = None
    warmup_ms: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    steady_mb: float | None = None
    relative_error: float | None = None
    tolerance: float | None = None
    flops: int = 0
    bytes: int = 0
    frames: int = 1
    repeats_ms: list[float] = field(default_factory=list)  # medians of earlier runs kept in the same records
    extras: dict[str, Any] = field(default_factory=dict)
    run: int = 0

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        return (self.level, self.subject, self.shape, self.batch, self.provider)

    @property
    def tflops(self) -> float | None:
        """Achieved TFLOP/s of the published work (a rewrite that saves operations shows a higher rate)."""
        return self.flops / self.median_ms / 1e9 if self.median_ms and self.flops else None

    @property
    def gbps(self) -> float | None:
        """Compulsory bytes over time, GB/s."""
        return self.bytes / self.median_ms / 1e6 if self.median_ms and self.bytes else None


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output (a tensor, or a dict or sequence of them), in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in tensors(value)]
    return []


def relative_error(output: Any, reference: Any) -> float:
    """The largest ||output - reference|| / ||reference|| over an output's tensors; infinity for NaN or a misfit."""
    outputs, references = tensors(output), tensors(reference)
    if not outputs or [item.shape for item in outputs] != [item.shape for item in references]:
        return float("inf")
    worst = 0.0
    for ours, truth in zip(outputs, references, strict=True):
        wide = truth.double()
        error = torch.linalg.vector_norm(ours.double() - wide) / torch.linalg.vector_norm(wide).clamp_min(1e-30)
        value = float(error)
        worst = max(worst, value if value == value else float("inf"))
    return worst


def clone(output: Any) -> list[Tensor]:
    """Copies that the next call cannot overwrite (CUDA graphs reuse their output buffers)."""
    return [tensor.clone() for tensor in tensors(output)]


def dtype_of(precision: str) -> torch.dtype:
    """The storage dtype of a float precision."""
    return {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
