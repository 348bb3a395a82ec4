"""The thread that reads a camera and pushes its frames; a file's at the file's pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from lpkernels.animate._camera import Camera
from lpkernels.animate.image import Frame

Push = Callable[[Frame], object]


class Feeder:
    """Reads a camera, which is the feeder's to close, from ``start`` on until its last frame, an error or ``close``.

    A frame of a file is due one period after the one before it. Where reading is too slow for that the pace is lost
    rather than made up by frames in a bunch.

    Args:
        clock, pause: seconds that only grow, and a wait that answers whether the end came meanwhile; for tests.

    Attributes:
        error: what ended it, other than the last frame and ``close``.
    """

    def __init__(
        self,
        camera: Camera,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self._camera, self._clock = camera, clock
        self._stopping = threading.Event()
        self._pause = pause if pause is not None else self._stopping.wait
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it began and will push nothing more."""
        return self._thread is not None and not self._thread.is_alive()

    def start(self, push: Push) -> None:
        """Begin; ``push`` takes each frame, and an error that it raises is the end."""
        self._thread = threading.Thread(target=self._run, args=(push,), name="lpkernels-camera", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """End after the frame that is being read; safe to call twice.

        A camera that gives nothing for so many seconds stays open until the process ends: closing it under FFmpeg's
        feet would crash.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)
        if self._thread is None or self.done:
            self._camera.close()

    def __enter__(self) -> Feeder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, push: Push) -> None:
        try:
            self._feed(push)
        except Exception as error:
            self.error = error

    def _feed(self, push: Push) -> None:
        due, period = self._clock(), 1 / self._camera.fps
        while not self._stopping.is_set() and (frame := self._camera.read()) is not None:
            if not self._camera.live:
                now = self._clock()
                if now < due and self._pause(due - now):
                    return
                due = max(due, now - period) + period
            push(frame)
