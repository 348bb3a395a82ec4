"""A video as source: its frames one after the other, and the motion that each of them takes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpkernels.animate.crop import Crop
from lpkernels.animate.extract import network_input, read_motion
from lpkernels.animate.face import face_crop, find_landmarks
from lpkernels.animate.image import Frame
from lpkernels.animate.landmarks import Array
from lpkernels.animate.motion import Motion, matmul
from lpkernels.animate.retarget import MotionOptions, _taken_coordinates
from lpkernels.animate.smoothing import nearest_rotation, smooth_signal
from lpkernels.animate.source import OneCrop, Source, SourceCrop, cut_out, listed, prepare_source
from lpkernels.animate.template import MotionTemplate
from lpkernels.animate.video import VideoReader
from lpkernels.errors import InputError
from lpkernels.models.portrait_model import PortraitModel

_OBSERVATION, _PROCESS = 3e-7, 1e-5  # variances of motion, as in ``smooth``
_LANDMARKS = 4e-5, 4e-5  # of landmarks, in parts of their extent, as measured on a film: jitter, motion
_NO_CHANGE: dict[str, Any] = {"relative": True, "region": "all", "driving_option": "pose-friendly"}


class SourceVideo:
    """A source video that was opened once and found readable.

    Attributes:
        fps: frames per second.
        frame_count: number of frames; None if the file does not say.

    Raises:
        InputError: the file is no video, or the crop leaves its pictures.
    """

    def __init__(
        self, model: PortraitModel[Any], path: Path, crop: SourceCrop | None = None, paste_back: bool = False
    ) -> None:
        self.path = path
        one: Sequence[OneCrop | None] = listed(crop)
        if len(one) > 1 or (isinstance(crop, str) and crop != "auto"):
            raise InputError("crop: of a source video one face is animated; give one box, a Crop, or 'auto'")
        self._crop = one[0]
        self._model, self._paste_back = model, paste_back
        self._crops: list[Crop] = []
        with VideoReader(path) as reader:
            self.fps, self.frame_count = reader.fps, reader.frame_count
            if not self.follows_face:
                cut_out(model, next(reader), self._crop)

    @property
    def follows_face(self) -> bool:
        """Whether ``follow`` has to be called first."""
        return isinstance(self._crop, str)

    def follow(self, step: Callable[[], None], count: int | None) -> None:
        """Find the face in each of at most ``count`` frames, and make the crops turn and move with it, smoothly.

        The largest face of the first frame that has one, then the one nearest to where it was. Where it is not found,
        the crop stays where it was.

        Raises:
            InputError: no frame has a face.
        """
        found: list[Array | None] = []
        last: Array | None = None
        for frame in self._frames(count):
            faces = find_landmarks(frame)
            if last is not None:
                before = last.mean(0)
                faces.sort(key=lambda points: float(np.hypot(*(points.mean(0) - before))))
            last = faces[0] if faces else last
            found.append(last)
            step()
        first = next((points for points in found if points is not None), None)
        if first is None:
            raise InputError(f"no face was found in {self.path}; give a box as crop, x,y,width,height")
        track = torch.from_numpy(np.stack([first if points is None else points for points in found]))
        extent = float(np.ptp(first, axis=0).max())
        smooth = smooth_signal(track / extent, *_LANDMARKS) * extent
        self._crops = [face_crop(points.numpy(), self._model.config.output_size) for points in smooth]

    def motions(self, count: int | None) -> Iterator[Motion]:
        """M on each of at most ``count`` frames."""
        for frame, crop in self._cropped(count):
            part, _ = cut_out(self._model, frame, crop)
            yield read_motion(self._model, network_input(self._model, "source", part))

    def sources(self, motions: MotionTemplate) -> Iterator[Source]:
        """The frames whose motion was read, prepared for animation: F is run, M is not."""
        like: Source | None = None
        for index, (frame, crop) in enumerate(self._cropped(motions.n_frames)):
            motion = motions.motion(index).to(self._model.device)
            like = prepare_source(
                self._model, frame, crop, self._paste_back, motion=motion, like=None if self._crops else like
            )
            yield like

    def _cropped(self, count: int | None) -> Iterator[tuple[Frame, OneCrop | None]]:
        crops = itertools.chain(self._crops, itertools.repeat(self._crops[-1] if self._crops else self._crop))
        return zip(self._frames(count), crops, strict=False)

    def _frames(self, count: int | None) -> Iterator[Frame]:
        with VideoReader(self.path) as reader:
            yield from itertools.islice(reader, count)


def options_for(options: MotionOptions) -> MotionOptions:
    """Those of an animator whose sources take the motion of ``combined_motion``, which has the others in it.

    Raises:
        InputError: options that a source video has no use for.
    """
    if options.expression_friendly:
        raise InputError("driving_option 'expression-friendly' is for a source picture: a video takes 'pose-friendly'")
    if options.eye_retargeting or options.lip_retargeting:
        raise InputError("eye and lip retargeting are for a source picture: of a video the openings change")
    return dataclasses.replace(options, **_NO_CHANGE)


def combined_motion(source: MotionTemplate, driving: MotionTemplate, options: MotionOptions) -> MotionTemplate:
    """The motion that each frame of a source video takes, as the original does for videos.

    Relative: ``R = (R_d R_d0^T) R_s`` and ``exp = exp_s + exp_d - exp_d0``, frame by frame; translation and scale stay
    the source's. Absolute: R, exp and t are the driving motion's. Of exp the coordinates of the region are taken,
    R and t in the regions ``all`` and ``pose``. Where several frames drive, R and exp are smoothed over the clip.

    Args:
        driving: of as many frames as the source, or of one.

    Raises:
        InputError: another number of frames or keypoints.
    """
    expected = source.exp.shape
    if driving.n_frames not in (1, source.n_frames) or driving.exp.shape[1:] != expected[1:]:
        shape = tuple(driving.exp.shape)
        raise InputError(f"the driving motion's exp must have shape {tuple(expected)}, or of one frame; got {shape}")
    if options.relative:
        exp = source.exp + (driving.exp - driving.exp[:1])
        R, t = matmul(matmul(driving.R, driving.R[:1].transpose(1, 2)), source.R), source.t
    else:
        exp, R, t = (_repeated(value, source.n_frames) for value in (driving.exp, driving.R, driving.t))
    if driving.n_frames > 1:
        exp = smooth_signal(exp, _OBSERVATION, _PROCESS)
        R = nearest_rotation(smooth_signal(R.double(), _OBSERVATION, _PROCESS)).float()
    taken = _taken_coordinates(options.region, False, expected[1], torch.device("cpu"))
    posed = options.region in ("all", "pose")
    return dataclasses.replace(
        source,
        exp=source.exp if taken is None else torch.where(taken, exp, source.exp),
        R=R if posed else source.R,
        t=t if posed else source.t,
        x_s=None,
    )


def _repeated(values: Tensor, count: int) -> Tensor:
    return values.expand(count, *values.shape[1:])
