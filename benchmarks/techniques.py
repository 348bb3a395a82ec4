"""PyTorch's own means of speed as switches, and a network prepared with a choice of them.

The baseline providers and the report's table of techniques are both made here, so one definition serves both.
"""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.compiled import compile_watched, new_step
from benchmarks.timing import capture, quantile, sampler_for
from benchmarks.work import Candidate, Unavailable

Call = Callable[..., Any]
EMULATED = "PyTorch emulates half precision on the CPU: not a speed anyone would choose"
WEIGHTS = {"half": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Techniques:
    """Which switches are on.

    ``precision``: fp32, amp (FP32 weights under FP16 autocast), half (FP16 weights) or bf16 (BF16 weights).
    """

    eval_mode: bool = True
    no_grad: bool = True
    tf32: bool = True  # PyTorch's default for cuDNN convolutions
    precision: str = "fp32"
    cudnn_benchmark: bool = False
    channels_last: bool = False
    cuda_graph: bool = False
    compile: str | None = None
    empty_cache: bool = False  # release cached memory after every call

    def works_in(self, device: torch.device) -> str:
        """The arithmetic: fp32, tf32, fp16 or bf16."""
        if self.precision != "fp32":
            return "bf16" if self.precision == "bf16" else "fp16"
        return "tf32" if self.tf32 and device.type == "cuda" else "fp32"


def prepare(module: nn.Module, techniques: Techniques, device: torch.device, alone: bool = True) -> Candidate:
    """A copy of ``module`` that runs with ``techniques``. Raises Unavailable where a switch cannot work."""
    require(techniques, device)
    return assemble(Converted(module, techniques), techniques, device, alone)


def require(techniques: Techniques, device: torch.device) -> None:
    """Raise Unavailable if ``device`` lacks what a switch needs."""
    if device.type != "cuda" and techniques.cuda_graph:
        raise Unavailable("CUDA graphs need a CUDA device")
    if device.type != "cuda" and techniques.compile:
        raise Unavailable(f"torch.compile mode {techniques.compile} is built on CUDA graphs: it needs a CUDA device")
    if device.type != "cuda" and techniques.precision != "fp32":
        raise Unavailable(EMULATED)


def assemble(call: Call, techniques: Techniques, device: torch.device, alone: bool = True) -> Candidate:
    """Wrap an already converted ``call`` in the techniques that act around it.

    ``alone`` is False for a part of a larger step, which itself marks where a new step begins.
    """
    candidate = Candidate(call)
    if techniques.compile:
        compiled, watch = compile_watched(call, techniques.compile)
        candidate = Candidate(new_step(compiled) if alone else compiled, watch.fell_back, watch.extras)
    elif techniques.cuda_graph:
        candidate = Candidate(Graphed(call, device))
    return Candidate(_with_flags(candidate.call, techniques), candidate.fell_back, candidate.extras)


def convert(module: nn.Module, techniques: Techniques) -> nn.Module:
    """A copy of ``module`` in the mode, precision and memory format of ``techniques``."""
    module = copy.deepcopy(module).train(not techniques.eval_mode).requires_grad_(not techniques.no_grad)
    if techniques.precision in WEIGHTS:
        module = module.to(WEIGHTS[techniques.precision])
    if techniques.channels_last:
        for parameter in module.parameters():
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.dim())
            if layout is not None:
                parameter.data = parameter.data.contiguous(memory_format=layout)
    return module


class Converted(nn.Module):
    """The converted network with its input casts inside, so that a compiler sees them."""

    def __init__(self, module: nn.Module, techniques: Techniques) -> None:
        super().__init__()
        self.module = convert(module, techniques)
        self.training = self.module.training
        self._dtype = WEIGHTS.get(techniques.precision)
        self._amp = techniques.precision == "amp"
        self._channels_last = techniques.channels_last

    def forward(self, *inputs: Tensor) -> Any:
        if self._dtype is not None:
            inputs = tuple(tensor.to(self._dtype) for tensor in inputs)
        if self._channels_last:
            inputs = tuple(_channels_last(tensor) for tensor in inputs)
        if not self._amp:
            return self.module(*inputs)
        with torch.autocast(inputs[0].device.type, torch.float16):
            return self.module(*inputs)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if tensor.dim() == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor


class Graphed:
    """A call as one CUDA graph: inputs are copied into its buffers, outputs stay in them until the next call."""

    def __init__(self, call: Call, device: torch.device) -> None:
        self._call, self._device = call, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: Any = None

    def _record(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        self._inputs = [tensor.clone() for tensor in inputs]

        def run() -> None:
            self._output = self._call(*self._inputs)

        return capture(run, self._device)

    def __call__(self, *inputs: Tensor) -> Any:
        if self._graph is None:
            self._graph = self._record(inputs)
        for static, tensor in zip(self._inputs, inputs, strict=True):
            static.copy_(tensor)
        self._graph.replay()
        return self._output

    def replay_ms(self, replays: int = 20, turns: int = 5) -> float | None:
        """Median milliseconds of a replay right behind another, as in a longer graph: no launch and no copy of inputs.

        None if nothing has been recorded.
        """
        graph = self._graph
        if graph is None:
            return None

        def replay() -> None:
            for _ in range(replays):
                graph.replay()

        sample = sampler_for(self._device, kernel=False).prepare(replay, [()])
        return quantile([sample(turn) for turn in range(turns)], 0.5) / replays


def _with_flags(call: Call, techniques: Techniques) -> Call:
    def run(*inputs: Any) -> Any:
        with flags(techniques), torch.set_grad_enabled(not techniques.no_grad):
            output = call(*inputs)
        if techniques.empty_cache:
            gc.collect()
            torch.cuda.empty_cache()
        return output

    return run


@contextlib.contextmanager
def flags(techniques: Techniques) -> Iterator[None]:
    """cuDNN's and cuBLAS's switches as ``techniques`` wants them, put back afterwards."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = techniques.cudnn_benchmark, techniques.tf32
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before
