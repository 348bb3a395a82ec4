"""Streams without a GPU: who waits for whom, and which accesses to the same memory nothing puts in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Clock = dict[int, int]  # how many works of each stream, by its number, come before


class Stream:
    """What a lane calls of a CUDA stream."""

    def __init__(self, number: int) -> None:
        self.number, self.device = number, torch.device("cuda", 0)
        self.clock: Clock = {}

    def wait_event(self, event: Event) -> None:
        for number, count in event.clock.items():
            self.clock[number] = max(count, self.clock.get(number, 0))

    def synchronize(self) -> None:
        pass


class Event:
    """What a lane calls of a CUDA event."""

    def __init__(self, streams: Streams) -> None:
        self.clock: Clock = {}
        self._streams = streams

    def record(self, stream: Stream) -> None:
        self.clock = dict(stream.clock)
        self._streams.events += 1


class Streams:
    """Stands in for ``torch.cuda``.

    Attributes:
        events: how many were recorded.
        entered: how often a stream was made the current one.
    """

    def __init__(self) -> None:
        self.events = self.entered = self._made = 0
        self.current = self.Stream()

    def Stream(self, device: object = None) -> Stream:  # noqa: N802 - torch's name
        self._made += 1
        return Stream(self._made)

    def Event(self) -> Event:  # noqa: N802 - torch's name
        return Event(self)

    def current_stream(self, index: int) -> Stream:
        assert index == 0
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.entered += 1
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def device(self, index: int) -> contextlib.AbstractContextManager[None]:
        assert index == 0
        return contextlib.nullcontext()


class Races(TorchDispatchMode):
    """Notes every op as work on the current stream.

    Attributes:
        found: names of ops that touch memory before work of another stream on it has ended; reads may overlap.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.found: list[str] = []
        self._streams = streams
        self._written: dict[int, tuple[int, int]] = {}  # address of a storage: stream and its count
        self._read: dict[int, Clock] = {}
        self._alive: list[Tensor] = []  # no address is given out twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        writes = {argument.name for argument in func._schema.arguments if argument.is_write}
        new = not any(returned.alias_info for returned in func._schema.returns)
        if not writes and not new:  # a view
            return answer
        stream = self._streams.current
        stream.clock[stream.number] = count = stream.clock.get(stream.number, 0) + 1
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        for name, value in (named | (kwargs or {})).items():
            for tensor in _tensors(value):
                self._touch(func.__name__, tensor, stream, count, write=name in writes)
        if new:
            for tensor in _tensors(answer):
                self._touch(func.__name__, tensor, stream, count, write=True)
        return answer

    def _touch(self, name: str, tensor: Tensor, stream: Stream, count: int, write: bool) -> None:
        self._alive.append(tensor)
        place = tensor.untyped_storage().data_ptr()
        if place == 0:  # of an empty tensor
            return
        before = [self._written[place]] if place in self._written else []
        if write:
            before += self._read.pop(place, {}).items()
            self._written[place] = stream.number, count
        else:
            self._read.setdefault(place, {})[stream.number] = count
        if any(stream.clock.get(number, 0) < theirs for number, theirs in before):
            self.found.append(name)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
