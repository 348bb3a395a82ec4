"""Threads that share one model: each animates a source of its own, and must see what it sees alone."""

from __future__ import annotations

import threading
import time
from time import perf_counter

import numpy as np

from benchmarks.endurance import Case, Marks, animated, fill, refuse, tenths
from benchmarks.work import Measurement
from lpkernels.animate.animator import Animator
from lpkernels.animate.image import Frame
from lpkernels.animate.portrait import draw_portrait

THREADS = 4
TURN = 6.0  # degrees between the sources


def together(case: Case, count: int) -> Measurement:
    """``count`` frames in all by ``THREADS`` threads with an animator each; times are of a frame, its waits included.

    Raises:
        Exception: what the first thread that failed raised.
    """
    rounds = max(1, count // (THREADS * len(case.frames)))
    each = rounds * len(case.frames)
    result = case.measurement("threads", f"{THREADS} threads, {each} frames each")
    size = len(case.source)
    sources = [draw_portrait(size, yaw=TURN * (index - THREADS / 2)) for index in range(THREADS)]
    alone = [animated(case.model, source, case.frames) for source in sources]
    marks = Marks(case.device)
    workers = [_Worker(case, source, expected, rounds) for source, expected in zip(sources, alone, strict=True)]
    marks.take("before")
    ready = threading.Barrier(THREADS)
    threads = [threading.Thread(target=worker.run, args=(ready,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.05)
        if sum(len(worker.times_ms) for worker in workers) * 10 >= THREADS * each:
            marks.take("tenth")
    for thread in threads:
        thread.join()
    marks.take("tenth")
    marks.take("end")
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    seconds = max(worker.ended for worker in workers) - min(worker.began for worker in workers)
    differing = sum(worker.differing for worker in workers)
    parts = [tenths(worker.times_ms) for worker in workers]
    result.extras = {
        "frames": THREADS * each,
        "threads": THREADS,
        "differing": differing,
        "frames_per_s": THREADS * each / seconds,
        **marks.facts(),
    }
    fill(
        result,
        [time for worker in workers for time in worker.times_ms],
        [time for first, _ in parts for time in first],
        [time for _, last in parts for time in last],
    )
    if differing:
        refuse(result, f"{differing} of {THREADS * each} pictures differ from those made by one thread alone")
    return result


class _Worker:
    """One thread's work, and what came of it; the animator records its own graph before the threads start together."""

    def __init__(self, case: Case, source: Frame, expected: list[Frame], rounds: int) -> None:
        self._frames, self._expected, self._rounds = case.frames, expected, rounds
        self._animator = Animator(case.model, source)
        self._animator.step(case.frames[0])
        self.times_ms: list[float] = []
        self.differing = 0
        self.began = self.ended = 0.0
        self.error: BaseException | None = None

    def run(self, ready: threading.Barrier) -> None:
        try:
            ready.wait()
            self.began = perf_counter()
            for _ in range(self._rounds):
                for frame, expected in zip(self._frames, self._expected, strict=True):
                    start = perf_counter()
                    picture = self._animator.step(frame)
                    self.times_ms.append((perf_counter() - start) * 1e3)
                    self.differing += not np.array_equal(picture, expected)
            self.ended = perf_counter()
        except BaseException as error:  # belongs to who started the thread
            self.error = error
