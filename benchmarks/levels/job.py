"""The whole job: a picture and a clip in, a video out; decoding, animating and encoding in turn, or overlapped.

In turn, a frame is waited for before the next is decoded. Overlapped, decoding, the animator with its look-ahead, and
encoding have a thread each. ``animator-*`` run the published networks, ``lpkernels-*`` the optimized ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.context import Context
from benchmarks.frame import twin
from benchmarks.levels.frame import EIGHT_BIT_FLOOR
from benchmarks.own import FORMS
from benchmarks.timing import Sampler, WallSampler
from benchmarks.work import Candidate, Measurement, Provider, Subject, Unavailable
from lpkernels.animate.animator import Animator
from lpkernels.fused.convert import optimize
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.models.portrait_model import PortraitModel

FRAMES = {"cuda": 72, "cpu": 3}
OWN = {"cuda": ("lpkernels-fp16", "lpkernels-bf16"), "cpu": ("lpkernels-fp32",)}
CHECKED = 3  # frames whose error is measured, before the encoder sees them
QUEUE = 8

Frames = Iterable[np.ndarray]


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Measure jobs with the animator of each precision; milliseconds are of the whole job, ``frames`` its length."""
    try:
        from lpkernels.animate.video import VideoReader  # noqa: F401 - says whether files can be read at all
    except ImportError as error:
        raise Unavailable(f"reading and writing video: {error}") from error
    with contextlib.ExitStack() as stack:
        folder = context.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rounds = 3 if context.device.type == "cuda" else 1
        harness = context.harness_with(warmup=2, patience=0.0, seconds=0.0, min_rounds=rounds)
        harness.sampler = _wall
        yield harness.measure(_subject(context, folder))


def _subject(context: Context, folder: Path) -> Subject:
    from lpkernels.animate.portrait import write_sample

    drawn = FRAMES[context.device.type]
    loops = max(1, round((context.options.frames or drawn) / drawn))
    frames = drawn * loops
    source, driving = write_sample(folder, frames=drawn, size=2 * context.config.image_size, loops=loops)
    ways = _ways(context.model, context.device)

    def maker(load: Callable[[], PortraitModel[Any]], overlapped: bool) -> Callable[[], Candidate]:
        def build() -> Candidate:
            files = load(), source, driving, folder / "out.mp4"
            return dataclasses.replace(job(*files, overlapped), answer=job(*files, overlapped, most=CHECKED).call)

        return build

    def first_frames() -> Tensor:
        return job(context.model, source, driving, folder / "reference.mp4", overlapped=False, most=CHECKED).call()

    return Subject(
        level="job",
        name="job",
        shape=f"{frames} frames {2 * context.config.image_size} -> {context.config.output_size}",
        inputs=lambda seed: (),
        reference=first_frames,
        providers=[
            Provider(
                f"{name}-{'overlapped' if overlapped else 'in-turn'}",
                precision,
                maker(load, overlapped),
                # The published networks under autocast; both ways make the same frames.
                yardstick=name == "animator-fp16" and not overlapped,
            )
            for name, (precision, load) in ways.items()
            for overlapped in (False, True)
        ],
        flops=0,
        frames=frames,
        floor=EIGHT_BIT_FLOOR,
    )


def _wall(device: torch.device, kernel: bool) -> Sampler:
    return WallSampler()


def _ways(model: LivePortrait, device: torch.device) -> dict[str, tuple[str, Callable[[], PortraitModel[Any]]]]:
    """Provider's name -> its precision and how its model is made."""

    def optimized(precision: str) -> Callable[[], PortraitModel[Any]]:
        return lambda: optimize(model, precision)

    on_gpu = device.type == "cuda"
    ways: dict[str, tuple[str, Callable[[], PortraitModel[Any]]]] = {
        "animator-fp32": ("tf32" if on_gpu else "fp32", lambda: model)
    }
    if on_gpu:
        ways["animator-fp16"] = "fp16", lambda: twin(model, torch.float16)
    return ways | {name: (FORMS[name].works_in(device), optimized(FORMS[name].precision)) for name in OWN[device.type]}


def job(
    model: PortraitModel[Any], source: Path, driving: Path, output: Path, overlapped: bool, most: int | None = None
) -> Candidate:
    """One job, of ``most`` frames at most, as a call without arguments; it returns its first frames, to be checked."""
    spent: dict[str, float] = {}
    warm_up = 0.0

    def call() -> Tensor:
        nonlocal warm_up
        from lpkernels.animate.video import VideoReader, VideoWriter

        spent.clear()
        checked: list[Tensor] = []
        size = (model.config.output_size,) * 2
        with VideoReader(driving) as reader, VideoWriter(output, reader.fps, size, audio_from=driving) as writer:
            animator = Animator(model, source)
            frames = _timed(itertools.islice(reader, most), "decode", spent)
            run = animator.run(_ahead(frames)) if overlapped else animator.run(frames, ahead=0)
            animated = _timed(run, "animate", spent)
            for frame in _ahead(animated) if overlapped else animated:
                if len(checked) < CHECKED:
                    checked.append(torch.from_numpy(frame).float())
                start = time.perf_counter()
                writer.write(frame)
                spent["encode"] = spent.get("encode", 0.0) + time.perf_counter() - start
        warm_up = animator.warm_up_seconds  # a part of animating: every job records its own graph
        return torch.stack(checked)

    def extras() -> dict[str, Any]:
        # Asking a stage for its next item includes the stages before it when they run in turn: take those off.
        stages = dict(spent)
        if not overlapped:
            stages["animate"] -= stages["decode"]
        return {f"{name}_ms": 1e3 * seconds for name, seconds in (stages | {"warm_up": warm_up}).items()}

    return Candidate(call, extras=extras)


def _timed(items: Frames, stage: str, spent: dict[str, float]) -> Iterator[np.ndarray]:
    """Pass items on, adding up the time spent waiting for each."""
    iterator = iter(items)
    while True:
        start = time.perf_counter()
        item = next(iterator, None)
        spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - start
        if item is None:
            return
        yield item


def _ahead(items: Frames) -> Iterator[np.ndarray]:
    """Make items in another thread, at most ``QUEUE`` ahead; an error there is raised here."""
    waiting: queue.Queue[Any] = queue.Queue(QUEUE)
    stopped = threading.Event()

    def fill() -> None:
        try:
            for item in items:
                while not stopped.is_set():
                    try:
                        waiting.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if stopped.is_set():
                    return
            waiting.put(None)
        except BaseException as error:  # belongs to the consumer, whatever it is
            waiting.put(error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
