"""Live animation: driving frames come when they come, the newest animated frame is there whenever it is asked for."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from lpkernels.animate._exchange import Exchange, LiveFrame
from lpkernels.animate._live_stats import Latency, SessionStats
from lpkernels.animate.animator import Animator
from lpkernels.animate.image import Frame, check_frame
from lpkernels.animate.source import Source, SourceCrop, prepare_source
from lpkernels.errors import InputError

__all__ = ["Latency", "LiveFrame", "Session", "SessionStats"]

_at_work: weakref.WeakKeyDictionary[threading.Thread, Exchange] = weakref.WeakKeyDictionary()


class Session:
    """Animates a live stream on a thread of its own, never more than one frame behind.

    Whoever drives pushes frames at any pace; whoever shows them takes the newest at any other. There is one place for
    a driving frame that waits and one for a finished picture, so nothing queues up: a driving frame that is not begun
    when the next one comes is dropped, and counted. While none comes, or only bad ones, the last good picture stays.

    >>> with lpkernels.Session(animator, size=(720, 1280)) as session:
    ...     start_camera(on_frame=session.push)  # uint8 RGB arrays, from the camera's own thread
    ...     while running:
    ...         frame = session.wait(0.1) or session.latest()
    ...         if frame is not None:
    ...             show(frame.picture)

    Every method may be called from any thread. The animator is the session's until ``close``.

    A frame that is no uint8 (H, W, 3) array, or that the animator refuses, is counted as bad and otherwise ignored
    (``stats().last_error`` says why). Any other error, such as the GPU's, ends the session: from then on ``push``,
    ``wait`` and ``latest`` raise LpkernelsError with the cause, while ``stats`` and ``close`` go on working.

    Args:
        animator: what animates; its present source is the one named ``source_name``.
        source_name: for ``switch_source``.
        size: height and width of the driving frames, to prepare for them now and not when the first one comes.
        clock: seconds that only grow; for tests.

    Raises:
        InputError: an impossible ``size``.
        LpkernelsError: frames of that size cannot be recorded as a CUDA graph.
    """

    def __init__(
        self,
        animator: Animator,
        *,
        source_name: str = "source",
        size: tuple[int, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if size is not None:
            animator.warm_up(size)
        self._animator = animator
        self._sources: dict[str, Source] = {source_name: animator.source}
        self._sources_lock = threading.Lock()
        self._exchange = Exchange(clock, source_name)
        # The thread knows the exchange, not the session: a session that nobody holds any more ends by itself.
        self._thread = threading.Thread(
            target=_work, args=(self._exchange, animator), name="lpkernels-session", daemon=True
        )
        self._end = weakref.finalize(self, _stop, self._exchange, self._thread)
        _at_work[self._thread] = self._exchange
        self._thread.start()

    def push(
        self,
        frame: Frame,
        *,
        taken_at: float | None = None,
        eye_ratio: float | None = None,
        lip_ratio: float | None = None,
        copy: bool = True,
    ) -> int:
        """Hand over a driving frame; returns at once.

        Args:
            frame: uint8 (H, W, 3), RGB array. Anything else, None too, is counted as a bad frame.
            taken_at: when it was taken, in seconds of ``time.monotonic``; now if None. Latencies count from it.
            eye_ratio, lip_ratio: openings wanted of the source's eyes and lips, when the options retarget them.
            copy: take a copy, so that the array may be overwritten at once. False: it must not be written to again.

        Returns:
            The frame's number, from 0, which the picture made from it carries as ``sequence``.

        Raises:
            LpkernelsError: the session has failed or is closed.
        """
        try:
            if not isinstance(frame, np.ndarray):
                raise TypeError(f"frame must be a NumPy array, got {type(frame).__name__}")
            check_frame("frame", frame)
        except (TypeError, ValueError) as error:
            return self._exchange.refuse(error)
        return self._exchange.put(frame.copy() if copy else frame, taken_at, eye_ratio, lip_ratio)

    def latest(self) -> LiveFrame | None:
        """The newest picture at once, the same again while there is no newer one; None before the first.

        Raises:
            LpkernelsError: the session has failed.
        """
        return self._exchange.newest()

    def wait(self, timeout: float | None = None, *, after: int | None = None) -> LiveFrame | None:
        """Wait for a picture that is newer than any handed out so far.

        Args:
            timeout: seconds at most; None: as long as the session lasts.
            after: wait for one newer than this ``sequence`` instead: where several threads wait, each passes its last.

        Returns:
            None when the time is up, or the session closed, without a newer one.

        Raises:
            LpkernelsError: the session has failed.
        """
        return self._exchange.wait(timeout, after)

    def stats(self) -> SessionStats:
        """Counts and times so far; also after ``close``."""
        return self._exchange.stats()

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources that can be switched to, in the order in which they were added."""
        with self._sources_lock:
            return tuple(self._sources)

    def add_source(
        self, name: str, source: Frame | Tensor | str | Path | Source, crop: SourceCrop | None = None
    ) -> None:
        """Prepare another source picture under ``name``, on the caller's thread while the stream goes on.

        Args:
            source, crop: as ``Animator``'s; or a Source prepared by the same model. An earlier one of the name is
                replaced; if it is being animated it stays until the next ``switch_source``.

        Raises:
            InputError: the picture cannot be read, or the crop leaves it or comes with a prepared Source; or the
                animator takes no such source, see ``Animator.set_source``.
            TypeError, ValueError: the array is not a picture.
        """
        if isinstance(source, Source):
            if crop is not None:
                raise InputError("crop: a prepared Source is cropped already; pass the crop to prepare_source")
            prepared = source
        else:
            model = self._animator.model
            prepared = prepare_source(model, source, crop, self._animator.paste_back)
            if model.device.type == "cuda":  # the worker reads it on another stream
                torch.cuda.current_stream(model.device).synchronize()
        self._animator.check_source(prepared)
        with self._sources_lock:
            self._sources[name] = prepared

    def switch_source(self, name: str) -> None:
        """Animate the source ``name`` from the next frame on that is begun; the reference frame stays.

        Raises:
            InputError: no such source was added.
            LpkernelsError: the session has failed or is closed.
        """
        with self._sources_lock:
            if name not in self._sources:
                raise InputError(f"no source is named {name!r}; there are {', '.join(map(repr, self._sources))}")
            self._exchange.switch(name, self._sources[name])

    def reset(self) -> None:
        """Make the next frame that is begun the reference of relative motion, as the first one was.

        Raises:
            LpkernelsError: the session has failed or is closed.
        """
        self._exchange.reset()

    def close(self) -> None:
        """End: the frame that is being animated is finished, one that waits is dropped. Safe to call again."""
        self._end()
        _stop(self._exchange, self._thread)  # where another thread ends it just now, for that

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _work(exchange: Exchange, animator: Animator) -> None:
    """The worker: one task after the other until there are no more."""
    try:
        while (task := exchange.take()) is not None:
            if task.source is not None:
                animator.set_source(task.source[1])
            if task.reset:
                animator.reset()
            if (given := task.given) is None:
                continue
            started_at = exchange.now()
            try:
                picture = animator.step(given.frame, given.eye_ratio, given.lip_ratio)
            except (TypeError, ValueError) as error:
                exchange.spoil(error)
            else:
                exchange.give(given, picture, started_at)
            del task, given  # a large frame is not kept while the next one is waited for
    except BaseException as error:
        exchange.fail(error)


def _stop(exchange: Exchange, thread: threading.Thread) -> None:
    exchange.close()
    if thread is not threading.current_thread():
        thread.join()


@atexit.register
def _stop_all() -> None:
    """No thread may be inside PyTorch when the interpreter ends, not even after a ``close`` that was interrupted."""
    for thread, exchange in list(_at_work.items()):
        _stop(exchange, thread)
