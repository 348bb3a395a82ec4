"""A live session that lasts: a clip at the pace of a camera, what came out, how late, and what memory it took."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.endurance import Case, Marks, fill, refuse
from benchmarks.work import Measurement
from lpkernels.animate._feeder import Feeder
from lpkernels.animate.animator import Animator
from lpkernels.animate.image import Frame
from lpkernels.animate.session import Session, SessionStats
from lpkernels.errors import LpkernelsError

FPS = 30.0
FIRST_S = 60.0  # to wait for the picture of the first frame
WINDOW_S = 60.0  # of the first and the last pictures; half of a run that is shorter than two of them


class Clip:
    """Frames in a loop without end, as a file's: ``lpkernels.animate._camera.Camera``."""

    live = False

    def __init__(self, frames: tuple[Frame, ...], fps: float = FPS) -> None:
        self.fps = fps
        self.size = (frames[0].shape[1], frames[0].shape[0])
        self._frames, self._next = frames, 0

    def read(self) -> Frame:
        """The next frame; it is not written to."""
        self._next += 1
        return self._frames[(self._next - 1) % len(self._frames)]

    def close(self) -> None:
        """Nothing to let go of."""


def soak(case: Case, seconds: float) -> Measurement:
    """``seconds`` of a session; its times are latencies, from a frame's push to its picture in host memory.

    Every picture is compared with the one that an animator alone makes of the same frame.

    Raises:
        LpkernelsError: the session failed, or gave no first picture.
    """
    result = case.measurement("soak", f"live, {FPS:g} frames/s for {seconds:g} s")
    seen: list[tuple[float, float]] = []  # seconds into the run, latency in ms
    differing = 0
    marks = Marks(case.device)
    animator = Animator(case.model, case.source)
    size = case.frames[0].shape[:2]
    with Feeder(Clip(case.frames)) as feeder, Session(animator, size=(size[0], size[1])) as session:
        _begin(session, case.frames[0])
        marks.take("before")
        feeder.start(lambda frame: session.push(frame, copy=False))
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            shown = session.wait(0.1)
            if shown is not None:
                seen.append((shown.finished_at - began, (shown.finished_at - shown.taken_at) * 1e3))
                expected = case.expected[(shown.sequence - 1) % len(case.frames)]
                differing += not np.array_equal(shown.picture, expected)
            if passed >= seconds / 10:
                marks.take("tenth")
        feeder.close()
        if feeder.error is not None:
            raise feeder.error
    marks.take("tenth")
    marks.take("end")
    stats, window = session.stats(), min(WINDOW_S, seconds / 2)
    result.extras = {**_counts(stats), "shown": len(seen), "differing": differing, "window_s": window, **marks.facts()}
    first = [latency for at, latency in seen if at < window]
    last = [latency for at, latency in seen if at >= seconds - window]
    if not first or not last:
        refuse(result, f"no picture in the first or the last {window:g} s: {stats.last_error or 'too slow'}")
        return result
    fill(result, [latency for _, latency in seen], first, last)
    if differing or stats.bad:
        refuse(result, f"{differing} pictures differ from those of an animator alone, {stats.bad} frames were bad")
    return result


def _begin(session: Session, first: Frame) -> None:
    """Wait for the picture of the first frame, which none may replace: all others' motion is relative to it."""
    session.push(first)
    if session.wait(FIRST_S) is None:
        raise LpkernelsError(f"the session gave no first picture within {FIRST_S:g} s")


def _counts(stats: SessionStats) -> dict[str, int]:
    """Those of the clip: without the frame that was waited for before it."""
    return {
        "frames": stats.frames_in - 1,
        "animated": stats.frames_out - 1,
        "dropped": stats.dropped,
        "bad": stats.bad,
    }
