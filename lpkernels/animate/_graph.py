"""Recording of a frame as a CUDA graph: one at a time in a process, and nothing left behind when it fails."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lpkernels import trace
from lpkernels.errors import LpkernelsError

Call = Callable[[], None]

WARM_UP = 2  # runs before a capture: kernels are compiled, library handles made and algorithms chosen
_one_at_a_time = threading.Lock()
_failed: list[torch.cuda.CUDAGraph] = []  # the host allocator may ask a graph whose capture failed about its stream


class GraphRecorder:
    """Turns calls into CUDA graphs, recorded on ``stream``; their memory is one pool.

    Graphs of one recorder must not run at the same time, whichever streams they are replayed on: what one leaves in
    the pool, the next overwrites.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._live: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, run: Call) -> Call:
        """Warm ``run`` up and record it; calling the answer replays it on the current stream.

        Tensors that ``run`` made and that are still referred to keep their addresses: a replay writes into them.

        Raises:
            LpkernelsError: something in ``run`` cannot be captured; the message says what and what to do.
            Exception: what ``run`` itself raises when it is warmed up.
        """
        with _one_at_a_time, torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream), _unrecorded():
            for _ in range(WARM_UP):
                run()
            self._stream.synchronize()
            torch.cuda.empty_cache()  # what the warm-up took is what the graph's own pool needs
            graph = torch.cuda.CUDAGraph()
            graphs = list(self._live)
            _capture(graph, graphs[0].pool() if graphs else torch.cuda.graph_pool_handle(), run)
            self._live.add(graph)
        return graph.replay


def _capture(graph: torch.cuda.CUDAGraph, pool: Any, run: Call) -> None:
    """Record on the current stream. Other threads may go on using the device meanwhile."""
    failure: BaseException | None = None
    ended = True
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            run()
        except BaseException as error:
            failure = error
        graph.capture_end()
    except Exception as error:  # where ``run`` spoilt the capture, its own error says why
        failure = failure or error
        ended = False
    if failure is None:
        return
    if not ended:
        _abandon(graph, pool)
    if not isinstance(failure, Exception):
        raise failure
    raise LpkernelsError(
        f"the frame cannot be recorded as a CUDA graph: {_one_line(failure)}; Animator(..., graph=False) runs without"
    ) from failure


def _abandon(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Take PyTorch out of a capture that did not end: else no other would start, and random numbers would fail."""
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    _failed.append(graph)
    with contextlib.suppress(RuntimeError):  # the generator leaves its capture mode when a capture ends well
        small = torch.cuda.CUDAGraph()
        small.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        small.capture_end()


@contextlib.contextmanager
def _unrecorded() -> Iterator[None]:
    """No wall times of ranges inside: the recorder waits for the device, which ends a capture."""
    recorder, trace._active.recorder = getattr(trace._active, "recorder", None), None
    try:
        yield
    finally:
        trace._active.recorder = recorder


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
