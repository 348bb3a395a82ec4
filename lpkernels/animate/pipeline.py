"""Whole files: a source picture and a driving video, template or picture in, a video or picture out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lpkernels.animate._driving import open_driving
from lpkernels.animate._outputs import Outputs
from lpkernels.animate._run import Progress, Run
from lpkernels.animate._source_video import SourceVideo
from lpkernels.animate._video_run import VideoRun
from lpkernels.animate.animator import Animator
from lpkernels.animate.image import Box, is_image_path, is_video_path
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.source import SourceCrop
from lpkernels.errors import InputError
from lpkernels.models.portrait_model import PortraitModel


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
    """Animate the picture or video ``source`` with the motion of ``driving`` into ``output``.

    A driving video or template gives a video (.mp4): one frame for each of the driving clip's, at its rate, with its
    sound. A driving picture, which takes absolute motion, gives a picture. Frames are streamed: memory does not grow
    with the clip. On a GPU the next frames are read, and the last ones written, while it works; where eyes or lips are
    retargeted, one after the other. Each file appears under its name only when it is complete.

    A source video (by the suffix of its name) gives a video at its own rate, as long as the shorter of the two clips,
    or as the source where a picture drives. Each of its frames takes the driving motion on top of its own, smoothed
    over the clip; so both are read once before, and their motions kept: some hundred numbers a frame.

    Args:
        model: on any device, as published or rebuilt (``lpkernels.optimize``).
        options: how driving motion moves the source.
        crop, driving_crop: boxes around the face, x, y, width, height in pixels; the whole picture without. Of the
            source also a ``Crop``. ``"auto"``: around the largest face (extra ``lpkernels[face]``), in a driving clip
            one box for all of it. Several faces of a source picture, with ``paste_back``: ``"all"``, or a list.
        paste_back: write the whole source picture, the animated crop in its place, rather than the square alone. A
            video's sides must be even: of a picture with an odd one, its last row or column is repeated.
        smooth: take jitter out of the driving motion; a video is then read twice, and its frames count twice in
            ``progress``.
        eye_ratio, lip_ratio: openings for every frame where the options retarget eyes or lips. Without them a
            template's own are taken.
        side_by_side: also write driving picture (where there is one), source and result in a row.
        save_template: also write the driving motion (.safetensors), as it is before smoothing.
        audio: carry the driving video's sound over, or where it has none that of a source video.
        progress: called after each frame.

    Raises:
        InputError: an input cannot be read, options do not fit it, or an output's name or folder is wrong.
        LpkernelsError: an output cannot be written.
        KeyboardInterrupt: after Ctrl-C, with a message that says what was kept.
    """
    began = time.perf_counter()
    options = options if options is not None else MotionOptions()
    still = is_image_path(driving) and not is_video_path(source)
    outputs = Outputs(Path(output), _path(side_by_side), _path(save_template), still=still)
    run = Run(progress)
    try:
        outputs.check(Path(source), Path(driving))
        clip = open_driving(driving, driving_crop)
        if clip.still and options.relative:
            raise InputError(f"{driving} is one picture, and relative motion needs a clip: choose absolute motion")
        if is_video_path(source):
            video = SourceVideo(model, Path(source), crop, paste_back)
            rate: Fraction | float = video.fps
            run = video_run = VideoRun(model, options, progress)
            video_run.animate_video(video, clip, outputs, audio)
        else:
            rate = clip.fps
            own_eyes, own_lips = (None, None) if clip.template is None else (clip.template.c_eyes, clip.template.c_lip)
            run.eyes = _ratios("eye", options.eye_retargeting, eye_ratio, own_eyes)
            run.lips = _ratios("lip", options.lip_retargeting, lip_ratio, own_lips)
            run.retargets = options.eye_retargeting or options.lip_retargeting
            animator = Animator(model, source, options=options, crop=crop, paste_back=paste_back)
            run.animate(animator, clip, outputs, smooth, clip.path if audio and clip.template is None else None)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.stopped(outputs)) from None
    seconds = time.perf_counter() - began
    return Result(run.written, float(rate), seconds, outputs.animated, outputs.side_by_side, outputs.template)


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
