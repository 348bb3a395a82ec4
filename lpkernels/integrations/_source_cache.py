"""What W computes of a source alone, kept from frame to frame by the feature volume's identity."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lpkernels.fused.warping_network import WarpSource

SOURCES = 4  # kept; a source video has one a frame, and none of them comes back


@dataclass(frozen=True, eq=False)
class _Entry:
    feature: weakref.ref[Tensor]
    stamp: tuple[int, int]
    source: WarpSource
    stream: torch.cuda.Stream | None
    ready: torch.cuda.Event | None


class SourceCache:
    """``prepare``, called once for a tensor and its version.

    A tensor object is known again while it lives and nothing was written into it: its version counter and address are
    the same. Not seen are writes that bypass the counter: through ``tensor.data``, NumPy or another library's kernel.
    Tensors made under ``torch.inference_mode`` count no versions, so theirs is prepared at every call.
    """

    def __init__(self, prepare: Callable[[Tensor], WarpSource]) -> None:
        self._prepare = prepare
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()

    def __call__(self, feature: Tensor) -> WarpSource:
        """The source of a feature volume (B, C, D, H, W)."""
        # A graph that someone else captures would read the memory after the cache let it go.
        if feature.is_inference() or capturing():
            return self._prepare(feature)
        with self._lock:
            self._entries = [entry for entry in self._entries if _is_current(entry)]
            for entry in self._entries:
                if entry.feature() is feature:
                    return _on_current_stream(entry)
            source = self._prepare(feature)
            stream = torch.cuda.current_stream(feature.device) if feature.is_cuda else None
            ready = None if stream is None else stream.record_event()
            entry = _Entry(weakref.ref(feature), _stamp(feature), source, stream, ready)
            self._entries = [*self._entries[1 - SOURCES :], entry]
            return source

    def __len__(self) -> int:
        return len(self._entries)


def capturing() -> bool:
    """Whether the current stream is being captured into a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _stamp(feature: Tensor) -> tuple[int, int]:
    return feature._version, feature.data_ptr()


def _is_current(entry: _Entry) -> bool:
    feature = entry.feature()
    return feature is not None and _stamp(feature) == entry.stamp


def _on_current_stream(entry: _Entry) -> WarpSource:
    """The entry's source, in order and safe to read on the current stream."""
    if entry.stream is not None and entry.ready is not None:
        current = torch.cuda.current_stream(entry.stream.device)
        if current != entry.stream:
            current.wait_event(entry.ready)
            for tensor in entry.source.tensors().values():
                tensor.record_stream(current)
    return entry.source
