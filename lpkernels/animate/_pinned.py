"""Pictures on their way between the host and the buffers of an engine, beside the stream that computes."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lpkernels.animate._lane import Lane
from lpkernels.animate.image import Frame

UPLOADS = 2  # the host fills one buffer while the other travels


class Pending(Protocol):
    """A picture on its way to the host."""

    def result(self) -> Frame:
        """Wait for it; once."""


class Copies(Protocol):
    """How host pictures get into a device buffer and out of one, in order with the lane's other work.

    To be called inside the lane. ``alone``: the picture is waited for before the next is begun, so there is nothing
    for its copies to run beside, and the fewest are made.
    """

    def upload(self, frames: Frame, into: Tensor, alone: bool = False) -> None:
        """Copy ``frames``, an array of any strides, into a dense uint8 tensor of its shape; the array is free after."""

    def download(self, images: Tensor, alone: bool = False) -> Pending:
        """Begin to copy a dense uint8 tensor to the host; it may be overwritten by later work of the lane."""


def make_copies(lane: Lane) -> Copies:
    """The copies that suit a lane."""
    return DirectCopies() if lane.stream is None else PinnedCopies(lane.stream)


class DirectCopies:
    """Copies of an engine on the CPU."""

    def upload(self, frames: Frame, into: Tensor, alone: bool = False) -> None:
        np.copyto(into.numpy(), frames)

    def download(self, images: Tensor, alone: bool = False) -> Pending:
        return _Arrived(images.numpy())


class _Arrived:
    def __init__(self, images: Frame) -> None:
        self._images = images

    def result(self) -> Frame:
        return self._images


class PinnedCopies:
    """Copies through page-locked memory on two streams of their own, so that they run beside the computation.

    A picture passes a buffer on the device on either way: the lane's own buffers are busy for all of a frame, these
    only for a copy on the device. One that is alone goes straight to the lane's buffers and from them, on its stream.
    The host waits in ``result``, and where an upload of two frames ago is not done.
    """

    def __init__(self, compute: torch.cuda.Stream) -> None:
        self._compute = compute
        # PyTorch hands streams out in turn, by priority: these do not use up the lanes'.
        self._up, self._down = (torch.cuda.Stream(compute.device, priority=-1) for _ in range(2))
        self._uploads = [_Buffer(compute, self._up) for _ in range(UPLOADS)]
        self._downloads: list[_Buffer] = []
        self._turn = 0

    def upload(self, frames: Frame, into: Tensor, alone: bool = False) -> None:
        buffer = self._uploads[self._turn]
        self._turn = (self._turn + 1) % UPLOADS
        buffer.reserve(frames.nbytes)
        buffer.moved.synchronize()
        host, device = buffer.views(frames.shape)
        np.copyto(host.numpy(), frames)
        if alone:
            into.copy_(host, non_blocking=True)
            buffer.moved.record(self._compute)
            return
        with torch.cuda.stream(self._up):
            self._up.wait_event(buffer.passed)
            device.copy_(host, non_blocking=True)
            buffer.moved.record(self._up)
        self._compute.wait_event(buffer.moved)
        into.copy_(device, non_blocking=True)
        buffer.passed.record(self._compute)

    def download(self, images: Tensor, alone: bool = False) -> Pending:
        buffer = self._downloads.pop() if self._downloads else _Buffer(self._compute, self._down)
        buffer.reserve(images.nbytes)
        host, device = buffer.views(images.shape)
        if alone:
            host.copy_(images, non_blocking=True)
            buffer.moved.record(self._compute)
            return _Downloading(buffer, host, self._downloads)
        self._compute.wait_event(buffer.moved)
        device.copy_(images, non_blocking=True)
        buffer.passed.record(self._compute)
        with torch.cuda.stream(self._down):
            self._down.wait_event(buffer.passed)
            host.copy_(device, non_blocking=True)
            buffer.moved.record(self._down)
        return _Downloading(buffer, host, self._downloads)


class _Downloading:
    """A picture on its way; its buffer serves again once the picture was taken out."""

    def __init__(self, buffer: _Buffer, host: Tensor, free: list[_Buffer]) -> None:
        self._buffer, self._host, self._free = buffer, host, free

    def result(self) -> Frame:
        self._buffer.moved.synchronize()
        images = self._host.numpy().copy()
        self._free.append(self._buffer)
        return images


class _Buffer:
    """Page-locked memory and its counterpart on the device, as large as the largest picture so far.

    Attributes:
        moved: the latest copy from or to the host's half is done.
        passed: the latest copy between the device's half and the lane's buffers is done.
    """

    def __init__(self, compute: torch.cuda.Stream, copying: torch.cuda.Stream) -> None:
        self.moved, self.passed = torch.cuda.Event(), torch.cuda.Event()
        self._compute, self._copying = compute, copying
        self._host = torch.empty(0, dtype=torch.uint8)
        self._device = torch.empty(0, dtype=torch.uint8)
        self._views: tuple[tuple[int, ...], Tensor, Tensor] | None = None

    def reserve(self, size: int) -> None:
        """Have room for ``size`` bytes."""
        if size <= self._host.numel():
            return
        self.moved.synchronize()
        self.passed.synchronize()
        with torch.inference_mode(False), torch.cuda.stream(self._compute):
            self._host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._device = torch.empty(size, dtype=torch.uint8, device=self._compute.device)
            self._device.record_stream(self._copying)  # given back only when the copies are done, too
            self.passed.record(self._compute)  # whose earlier work may still use this memory
        self._views = None

    def views(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Host's and device's first bytes as dense tensors of ``shape``."""
        if self._views is None or self._views[0] != shape:
            size = math.prod(shape)
            with torch.inference_mode(False):
                self._views = shape, self._host[:size].view(shape), self._device[:size].view(shape)
        return self._views[1:]
