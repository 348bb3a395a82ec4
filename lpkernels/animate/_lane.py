"""The streams that one engine works on, one after the other."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch

_ANYWHERE: contextlib.AbstractContextManager[object] = contextlib.nullcontext()


class Lane:
    """The order of one engine's work, for one thread at a time; the CPU has no streams, and calls simply run.

    Frames of tensors run ``here``, on the caller's stream; recordings, and frames that are copied from and to the host,
    ``inside``, on a stream of the lane's own. Only where work changes from one stream to another does the new one wait
    for the old one.

    Memory that outlasts a frame is made inside, or marked as used there (``Tensor.record_stream``), and dropped only
    once the lane has settled: what gets it next on the lane's own stream then comes after all work that used it.

    Attributes:
        stream: the lane's own; None on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = self._latest = torch.cuda.Stream(device)
            self._index = self.stream.device.index
            self._moved = torch.cuda.Event()  # recorded anew whenever work changes streams

    def here(self) -> contextlib.AbstractContextManager[object]:
        """On the caller's current stream, after the lane's work so far."""
        if self.stream is None:
            return _ANYWHERE
        self._follow(torch.cuda.current_stream(self._index))
        return torch.cuda.device(self._index)

    def inside(self) -> contextlib.AbstractContextManager[object]:
        """On the lane's own stream, after the lane's work so far."""
        if self.stream is None:
            return _ANYWHERE
        self._follow(self.stream)
        return torch.cuda.stream(self.stream)

    def latest(self) -> contextlib.AbstractContextManager[object]:
        """On the stream of the lane's latest work."""
        return _ANYWHERE if self.stream is None else torch.cuda.stream(self._latest)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """``inside``, after what the caller's stream was given so far and before what it is given next."""
        if self.stream is None:
            yield
            return
        caller = torch.cuda.current_stream(self._index)
        with self.inside():
            self._order(caller, self.stream)
            try:
                yield
            finally:
                self._order(self.stream, caller)

    def settle(self) -> None:
        """Let the lane's own stream wait for its work on others: memory that was made inside may be dropped."""
        if self.stream is not None:
            self._follow(self.stream)

    def settle_before(self, owner: object) -> None:
        """Settle when ``owner`` is dropped, before what it holds is."""
        weakref.finalize(owner, self.settle).atexit = False

    def synchronize(self) -> None:
        """Wait on the host until the lane is idle."""
        if self.stream is not None:
            self._latest.synchronize()

    def _follow(self, stream: torch.cuda.Stream) -> None:
        """Go on on ``stream``."""
        if stream != self._latest:
            self._order(self._latest, stream)
            self._latest = stream

    def _order(self, first: torch.cuda.Stream, then: torch.cuda.Stream) -> None:
        self._moved.record(first)
        then.wait_event(self._moved)
