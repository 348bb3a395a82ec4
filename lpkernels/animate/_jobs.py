"""Frames under way: copied in, run and copied out by an engine, one after the other or a few ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lpkernels.animate._pinned import make_copies
from lpkernels.animate._plan import FramePlan, pack
from lpkernels.animate.engine import FrameEngine, Rows
from lpkernels.animate.image import Frame
from lpkernels.animate.motion import Motion
from lpkernels.animate.paste import PasteBack

Item = TypeVar("Item")


class Job(NamedTuple):
    """A frame that was started: how to get its pictures (B, H, W, 3), once, and what drove it."""

    result: Callable[[], Any]
    driving: Motion | Rows | None


class Jobs:
    """Starts frames of an engine; arguments are checked already."""

    def __init__(self, engine: FrameEngine, output_size: int) -> None:
        self._engine, self._lane, self._side = engine, engine.lane, output_size
        self._copies = make_copies(engine.lane)
        self._lane.settle_before(self)
        self._paste: PasteBack | None = None
        self._canvas: Tensor | None = None

    def paste_into(self, paste: PasteBack | None) -> None:
        """Put what the engine draws from now on into a picture; None: leave it as it is."""
        with self._lane.joined():
            self._paste, self._canvas = paste, None
        if paste is not None and self._lane.stream is not None:
            for tensor in paste.tensors():
                tensor.record_stream(self._lane.stream)

    def pictures(
        self, frames: Frame | Tensor, eye_ratio: float | None, lip_ratio: float | None, alone: bool = False
    ) -> Job:
        """uint8 (B, H, W, 3); the answer is an array for an array, else a tensor on the engine's device.

        ``alone``: it is finished before the next job is started.
        """
        plan = self._engine.plan_pictures(*frames.shape[:3])
        if isinstance(frames, np.ndarray):
            with self._lane.inside():
                self._copies.upload(frames, plan.inputs, alone)
                self._engine.launch(plan, eye_ratio, lip_ratio)
                pending = self._copies.download(self._pasted(plan.output), alone)
            return Job(pending.result, self._engine.rows())
        pictures = self._to_tensor(plan, frames, eye_ratio, lip_ratio, alone)
        return Job(lambda: pictures, self._engine.rows())

    def motion(self, motion: Motion, eye_ratio: float | None, lip_ratio: float | None, to_host: bool) -> Job:
        """A motion on any device; the answer is an array or a tensor on the engine's device."""
        plan = self._engine.plan_motions(len(motion))
        rows = pack(motion).detach().view(torch.uint8)
        if not to_host:
            pictures = self._to_tensor(plan, rows, eye_ratio, lip_ratio)
            return Job(lambda: pictures, motion)
        if not rows.is_cpu:
            with self._lane.here():
                plan.bytes.copy_(rows, non_blocking=True)
        with self._lane.inside():
            if rows.is_cpu:
                self._upload(rows, plan)
            self._engine.launch(plan, eye_ratio, lip_ratio)
            return Job(self._copies.download(self._pasted(plan.output)).result, motion)

    def _to_tensor(
        self,
        plan: FramePlan,
        given: Tensor,
        eye_ratio: float | None,
        lip_ratio: float | None,
        alone: bool = False,
    ) -> Tensor:
        """Run on bytes from any device; the answer is new memory, in order with the caller's stream."""
        on_host = given.is_cpu
        if on_host:
            with self._lane.inside():
                self._upload(given, plan, alone)
        with self._lane.here():
            if not on_host:
                plan.bytes.copy_(given, non_blocking=True)
            self._engine.launch(plan, eye_ratio, lip_ratio)
            if self._paste is not None:
                return self._paste.new(plan.output)
            return plan.output.clone(memory_format=torch.contiguous_format)

    def _upload(self, given: Tensor, plan: FramePlan, alone: bool = False) -> None:
        """To be called inside: through page-locked memory, for from other memory a copy waits for the stream."""
        self._copies.upload(given.numpy(), plan.bytes, alone)

    def _pasted(self, images: Tensor) -> Tensor:
        """The whole pictures where crops are pasted back; valid until the lane's next frame, on the CPU for good.

        To be called inside the lane.
        """
        if self._paste is None:
            return images
        if self._lane.stream is None:  # what is downloaded there is this memory itself
            return self._paste.new(images)
        if self._canvas is None or self._canvas.shape != self._paste.shape(len(images)):
            self._canvas = self._paste.canvas(len(images))
        self._paste.onto(images, self._canvas)
        return self._canvas


def overlapped(
    items: Iterable[Item], start: Callable[[Item], Job], finish: Callable[[Job], Any], ahead: int
) -> Iterator[Any]:
    """Finish jobs in order, each when ``ahead`` more were started or there are no more items.

    An error in ``items`` or ``start`` is raised after the jobs before it. At most ``ahead`` + 1 jobs are held.
    """
    iterator, under_way = iter(items), deque[Job]()
    failure: Exception | None = None
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        try:
            under_way.append(start(item))
        except Exception as error:
            failure = error
            break
        del item  # not held while the consumer works
        if len(under_way) > ahead:
            yield finish(under_way.popleft())
    while under_way:
        yield finish(under_way.popleft())
    if failure is not None:
        raise failure
