"""A network's frame as one CUDA graph for each shape of its inputs, with answers that belong to the caller."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lpkernels.animate._graph import GraphRecorder
from lpkernels.animate._lane import Lane
from lpkernels.errors import LpkernelsError
from lpkernels.integrations._source_cache import capturing

Answer = TypeVar("Answer")
Outputs = Sequence[Tensor]
Run = Callable[..., Outputs]
Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs a call for the first time and gives one that repeats it in the same memory."""

FRAMES = 4  # shapes kept; the least recently used makes room


class Frames:
    """Calls ``run``, by itself or as a graph.

    Graphs read and write buffers of their own. Inputs are copied in, answers out, so that callers on any thread and
    stream own what they get; calls that share a graph wait for each other, on the device where streams differ.

    Args:
        run: from tensors to tensors, the same kernels for the same shapes and dtypes.
        device: of all of them.
        graph: True: record, and raise where that fails; None: record on a GPU, and warn once where that fails.
        constant: so many leading inputs are written by nobody: copied when another object comes.
        record: how, for tests; None: as CUDA graphs.
    """

    def __init__(
        self, run: Run, device: torch.device, graph: bool | None, constant: int = 0, record: Record | None = None
    ) -> None:
        self._run, self._constant, self._required = run, constant, graph is True
        self._lane = Lane(device)
        if record is None and graph is not False and self._lane.stream is not None:
            record = GraphRecorder(self._lane.stream)
        self._record = record
        self._frames: OrderedDict[tuple[Any, ...], _Frame] = OrderedDict()
        self._done: torch.cuda.Event | None = None  # of the last call: the frames share one pool of memory
        self._lock = threading.Lock()

    @property
    def records(self) -> bool:
        """Whether calls are recorded and replayed."""
        return self._record is not None

    def __call__(self, inputs: Sequence[Tensor], finish: Callable[[Outputs, bool], Answer]) -> Answer:
        """``finish(outputs, borrowed)`` of the outputs for ``inputs``; what is borrowed it has to copy."""
        if self._record is not None and not capturing():
            with self._lock:
                frame = self._frame(inputs)
                if frame is not None:
                    with self._in_order(inputs[0].device):
                        return frame(inputs, finish)
        return finish(self._run(*inputs), False)

    def _frame(self, inputs: Sequence[Tensor]) -> _Frame | None:
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        if self._record is None:  # another thread's recording failed meanwhile
            return None
        try:
            frame = _Frame(self._run, inputs, self._constant, self._lane, self._record)
        except LpkernelsError as error:
            reason = f"a network cannot be recorded as a CUDA graph: {_first_line(error.__cause__ or error)}"
            if self._required:
                raise LpkernelsError(f"{reason}; accelerate(..., graph=False) runs without") from error
            warnings.warn(f"lpkernels: {reason}; it runs without from now on", RuntimeWarning, stacklevel=2)
            self._record = None
            return None
        if len(self._frames) == FRAMES:
            if self._done is not None:
                self._done.synchronize()  # the oldest may still run
            self._frames.popitem(last=False)
        self._frames[key] = frame
        return frame

    @contextlib.contextmanager
    def _in_order(self, device: torch.device) -> Iterator[None]:
        """After the last call's work on the device, whichever stream that was on."""
        if device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(device)
        if self._done is not None:
            stream.wait_event(self._done)
        try:
            yield
        finally:
            self._done = stream.record_event()


class _Frame:
    """One recorded shape and its buffers."""

    def __init__(self, run: Run, inputs: Sequence[Tensor], constant: int, lane: Lane, record: Record) -> None:
        self._outputs: Outputs = ()
        self._loaded: list[Tensor | None] = [None] * constant
        # Buffers must stay writable, whatever mode the first caller is in.
        with torch.inference_mode(False), torch.no_grad(), lane.joined():
            self._inputs = [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in inputs]
            self._load(inputs)

            def once() -> None:
                self._outputs = run(*self._inputs)

            self._replay = record(once)

    def __call__(self, inputs: Sequence[Tensor], finish: Callable[[Outputs, bool], Answer]) -> Answer:
        self._load(inputs)
        self._replay()
        return finish(self._outputs, True)

    def _load(self, inputs: Sequence[Tensor]) -> None:
        for index, (buffer, tensor) in enumerate(zip(self._inputs, inputs, strict=True)):
            if index >= len(self._loaded):
                buffer.copy_(tensor)
            elif self._loaded[index] is not tensor:
                self._loaded[index] = None  # a copy that fails leaves neither
                buffer.copy_(tensor)
                self._loaded[index] = tensor


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
