"""The thread that reads a camera and pushes its frames; a file's at the file's pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lpkernels.animate._camera import Camera
from lpkernels.animate.image import Frame

Push = Callable[[Frame], object]


class Feeder:
    """Reads a camera from ``start`` on until its last frame, an error or ``stop``.

    A frame of a file is due one period after the one before it. Where reading is too slow for that the pace is lost
    rather than made up by frames in a bunch.

    Args:
        push: takes each frame; what it raises ends the feeder, too.
        clock, pause: seconds that only grow, and a wait that answers whether ``stop`` came meanwhile; for tests.
    """

    def __init__(
        self,
        camera: Camera,
        push: Push,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self._camera, self._push, self._clock = camera, push, clock
        self._stopping = threading.Event()
        self._pause = pause if pause is not None else self._stopping.wait
        self._thread = threading.Thread(target=self.run, name="lpkernels-camera", daemon=True)
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more will be pushed."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float | None = 5.0) -> bool:
        """End after the frame that is being read, and wait for it; whether the camera let go in time."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def run(self) -> None:
        """What the thread does."""
        try:
            self._feed()
        except Exception as error:
            self.error = error

    def _feed(self) -> None:
        due, period = self._clock(), 1 / self._camera.fps
        while not self._stopping.is_set() and (frame := self._camera.read()) is not None:
            if not self._camera.live:
                now = self._clock()
                if now < due and self._pause(due - now):
                    return
                due = max(due, now - period) + period
            self._push(frame)
