"""Whole files: a source picture and a driving video, template or picture in, a video or picture out."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lpkernels.animate._driving import Driving, open_driving
from lpkernels.animate._outputs import Outputs
from lpkernels.animate.animator import Animator
from lpkernels.animate.extract import collect_template, network_input, read_motion
from lpkernels.animate.image import Box, Frame, is_image_path
from lpkernels.animate.motion import Motion
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.smoothing import smooth as smooth_template
from lpkernels.animate.source import SourceCrop
from lpkernels.animate.template import MotionTemplate
from lpkernels.animate.template import save_template as write_template
from lpkernels.errors import InputError
from lpkernels.models.portrait_model import PortraitModel

Progress = Callable[[int, int | None], None]
"""Called after each frame with the number done and the number in all (None: unknown)."""


@dataclass(frozen=True)
class Result:
    """What ``animate_file`` wrote: ``frames`` at ``fps`` in ``seconds`` of wall-clock time, and the files' paths."""

    frames: int
    fps: float
    seconds: float
    output: Path
    side_by_side: Path | None = None
    template: Path | None = None


def animate_file(
    model: PortraitModel[Any],
    source: str | Path,
    driving: str | Path,
    output: str | Path,
    *,
    options: MotionOptions | None = None,
    crop: SourceCrop | None = None,
    driving_crop: Box | Literal["auto"] | None = None,
    paste_back: bool = False,
    smooth: bool = False,
    eye_ratio: float | None = None,
    lip_ratio: float | None = None,
    side_by_side: str | Path | None = None,
    save_template: str | Path | None = None,
    audio: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Animate the picture ``source`` with the motion of ``driving`` into ``output``.

    A driving video or template gives a video (.mp4): one frame for each of the driving clip's, at its rate, with its
    sound. A driving picture, which takes absolute motion, gives a picture. Frames are streamed: memory does not grow
    with the clip. On a GPU the next frames are read, and the last ones written, while it works; where eyes or lips are
    retargeted, one after the other. Each file appears under its name only when it is complete.

    Args:
        model: on any device, as published or rebuilt (``lpkernels.optimize``).
        options: how driving motion moves the source.
        crop, driving_crop: boxes around the face, x, y, width, height in pixels; the whole picture without. Of the
            source also a ``Crop``. ``"auto"``: around the largest face (extra ``lpkernels[face]``), in a driving clip
            one box for all of it.
        paste_back: write the whole source picture, the animated crop in its place, rather than the square alone. A
            video's sides must be even: of a picture with an odd one, its last row or column is repeated.
        smooth: take jitter out of the driving motion; a video is then read twice, and its frames count twice in
            ``progress``.
        eye_ratio, lip_ratio: openings for every frame where the options retarget eyes or lips. Without them a
            template's own are taken.
        side_by_side: also write driving picture (where there is one), source and result in a row.
        save_template: also write the driving motion (.safetensors), as it is before smoothing.
        audio: carry the driving video's sound over.
        progress: called after each frame.

    Raises:
        InputError: an input cannot be read, options do not fit it, or an output's name or folder is wrong.
        LpkernelsError: an output cannot be written.
        KeyboardInterrupt: after Ctrl-C, with a message that says what was kept.
    """
    began = time.perf_counter()
    options = options if options is not None else MotionOptions()
    outputs = Outputs(Path(output), _path(side_by_side), _path(save_template), still=is_image_path(driving))
    run = _Run(progress)
    try:
        outputs.check(Path(source), Path(driving))
        clip = open_driving(driving, driving_crop)
        if clip.still and options.relative:
            raise InputError(f"{driving} is one picture, and relative motion needs a clip: choose absolute motion")
        own_eyes, own_lips = (None, None) if clip.template is None else (clip.template.c_eyes, clip.template.c_lip)
        run.eyes = _ratios("eye", options.eye_retargeting, eye_ratio, own_eyes)
        run.lips = _ratios("lip", options.lip_retargeting, lip_ratio, own_lips)
        run.retargets = options.eye_retargeting or options.lip_retargeting
        animator = Animator(model, source, options=options, crop=crop, paste_back=paste_back)
        run.animate(animator, clip, outputs, smooth, clip.path if audio and clip.template is None else None)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.stopped(outputs)) from None
    seconds = time.perf_counter() - began
    return Result(run.written, float(clip.fps), seconds, outputs.animated, outputs.side_by_side, outputs.template)


class _Run:
    """One pass over a driving file, or two when the motion is smoothed in between."""

    def __init__(self, progress: Progress | None) -> None:
        self.eyes: Iterable[float | None] = itertools.repeat(None)
        self.lips: Iterable[float | None] = itertools.repeat(None)
        self.retargets = False
        self.written = 0
        self._progress = progress
        self._done = 0
        self._total: int | None = None
        self._template_kept = False

    def animate(
        self, animator: Animator, clip: Driving, outputs: Outputs, smooth: bool, audio_from: Path | None
    ) -> None:
        """Write the outputs."""
        template, read_twice = clip.template, smooth and clip.template is None
        self._total = clip.frame_count and clip.frame_count * (2 if read_twice else 1)
        if read_twice:
            template = collect_template(self._read(animator, clip), clip.fps)
        if template is not None and outputs.template is not None:
            write_template(outputs.template, template)
            self._template_kept = True
        if template is not None and smooth:
            template = smooth_template(template)
        motions: list[Motion] | None = [] if template is None and outputs.template is not None else None
        height, width = animator.frame_size
        source = animator.source.whole
        with outputs.open(clip.fps, (width, height), animator.output_size, source, audio_from) as writer:
            for picture, animated in self._frames(animator, clip, template, outputs.side_by_side is not None):
                writer.write(picture, animated)
                if motions is not None and animator.driving_motion is not None:
                    motions.append(animator.driving_motion.to("cpu"))
                self.written += 1
                self._step()
            if motions is not None and outputs.template is not None:
                write_template(outputs.template, collect_template(motions, clip.fps))

    def stopped(self, outputs: Outputs) -> str:
        """What to tell after Ctrl-C."""
        of = f" of {self._total}" if self._total else ""
        kept = f"kept: {outputs.template}" if self._template_kept else "nothing was kept"
        return f"stopped after {self._done}{of} frames; {outputs.animated} was not written, {kept}"

    def _frames(
        self, animator: Animator, clip: Driving, template: MotionTemplate | None, pictures: bool
    ) -> Iterator[tuple[Frame | None, Frame]]:
        """(driving picture where ``pictures``, animated frame), frame by frame."""
        if template is None:
            return self._by_pictures(animator, clip, pictures)
        shown: Iterable[Frame | None] = itertools.repeat(None)
        if pictures and clip.template is None:
            shown = clip.frames()
        return zip(shown, self._by_motions(animator, template), strict=False)

    def _by_pictures(self, animator: Animator, clip: Driving, pictures: bool) -> Iterator[tuple[Frame | None, Frame]]:
        if self.retargets:
            for picture, eye, lip in zip(clip.frames(), self.eyes, self.lips, strict=False):
                yield picture, animator.step(picture, eye, lip)
            return
        waiting: deque[Frame] = deque()  # the animator reads ahead: the pictures whose frames it has not given yet

        def read() -> Iterator[Frame]:
            for picture in clip.frames():
                if pictures:
                    waiting.append(picture)
                yield picture

        for animated in animator.run(read()):
            yield (waiting.popleft() if pictures else None), animated

    def _by_motions(self, animator: Animator, template: MotionTemplate) -> Iterator[Frame]:
        if not self.retargets:
            return animator.run_template(template)
        motions = zip(template.motions(), self.eyes, self.lips, strict=False)
        return (animator.step_motion(motion, eye, lip).cpu().numpy() for motion, eye, lip in motions)

    def _read(self, animator: Animator, clip: Driving) -> Iterator[Motion]:
        for frame in clip.frames():
            yield read_motion(animator.model, network_input(animator.model, "frame", frame))
            self._step()

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _ratios(part: str, retarget: bool, given: float | None, own: Tensor | None) -> Iterable[float | None]:
    """The opening wanted in each frame; ``own`` (N, 1 or 2) holds the template's, left eye first."""
    if not retarget:
        return itertools.repeat(None)
    if given is not None:
        return itertools.repeat(given)
    if own is None:
        raise InputError(
            f"{part} retargeting needs {part}_ratio, the opening wanted: the driving file has none of its own"
        )
    return [float(row[0]) for row in own]
