"""The frame engine: one source picture, driving frames in, animated frames out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lpkernels import trace
from lpkernels.animate.extract import network_input, read_motion
from lpkernels.animate.image import Box, Frame, Picture, to_uint8
from lpkernels.animate.motion import Motion
from lpkernels.animate.retarget import MotionOptions, convex_hull_multiplier, drive
from lpkernels.animate.source import Source, prepare_source
from lpkernels.animate.template import MotionTemplate
from lpkernels.errors import InputError
from lpkernels.models.live_portrait import LivePortrait


class Animator:
    """Animates one source picture, frame by frame, with bounded memory.

    With relative motion (the default) the first driving frame is remembered, and what moves the source is each frame's
    change since then: start with a frame whose expression is like the source's, usually a neutral one.

    >>> animator = Animator(model, "portrait.jpg")
    >>> for frame in animator.run(frames):  # uint8 RGB in, uint8 RGB out
    ...     show(frame)

    Args:
        model: on any device, in any compute dtype.
        source: uint8 (H, W, 3) RGB array or tensor, or the path of a picture.
        options: how driving motion moves the source.
        crop: box of the source around the face: x, y, width, height in pixels. Without it the whole picture is squeezed
            into a square.

    Raises:
        InputError: the picture cannot be read or the crop leaves it.
        TypeError, ValueError: the array is not a picture.
    """

    def __init__(
        self,
        model: LivePortrait,
        source: Frame | Tensor | str | Path,
        *,
        options: MotionOptions | None = None,
        crop: Box | None = None,
    ) -> None:
        self.model = model
        self.options = options if options is not None else MotionOptions()
        self._first: Motion | None = None
        self._driving: Motion | None = None
        self._multiplier: Tensor | None = None
        self._source = prepare_source(model, source, crop)

    @property
    def source(self) -> Source:
        """The prepared source picture."""
        return self._source

    @property
    def output_size(self) -> int:
        """Side of the square output frames in pixels."""
        return self.model.config.output_size

    @property
    def driving_motion(self) -> Motion | None:
        """The motion of the latest driving frame; None before the first."""
        return self._driving

    def set_source(self, source: Frame | Tensor | str | Path, crop: Box | None = None) -> None:
        """Animate another picture from the next frame on; the first driving frame stays the reference."""
        self._source = prepare_source(self.model, source, crop)
        self._multiplier = None

    def reset(self) -> None:
        """Forget the first driving frame: the next one becomes the reference of relative motion."""
        self._first = self._driving = self._multiplier = None

    def step(self, frame: Picture, eye_ratio: float | None = None, lip_ratio: float | None = None) -> Picture:
        """Animate one driving frame.

        Args:
            frame: uint8 (H, W, 3), RGB, any size; a NumPy array, or a tensor on any device.
            eye_ratio, lip_ratio: openings wanted of the source's eyes and lips, when the options retarget them.

        Returns:
            uint8 (S, S, 3), RGB, S = ``output_size``: an array for an array, a tensor on the model's device for a
            tensor.

        Raises:
            TypeError, ValueError: ``frame`` is not such a picture.
            InputError: the options retarget eyes or lips and their ratio is not given.
        """
        with trace.range("frame", "frame"):
            motion = read_motion(self.model, network_input(self.model, "frame", frame))
            result = self._animate(motion, eye_ratio, lip_ratio)
            return result.cpu().numpy() if isinstance(frame, np.ndarray) else result

    def step_motion(self, motion: Motion, eye_ratio: float | None = None, lip_ratio: float | None = None) -> Tensor:
        """Animate with a motion that is known already, such as a template's.

        Args:
            motion: one frame (batch 1), on any device; ``kp`` is not needed.

        Returns:
            uint8 (S, S, 3) tensor on the model's device.

        Raises:
            InputError: the motion is of another number of keypoints, or as ``step``.
        """
        with trace.range("frame", "frame"):
            return self._animate(motion.to(self.model.device), eye_ratio, lip_ratio)

    def run(self, frames: Iterable[Picture]) -> Iterator[Picture]:
        """Animate driving frames as they come: a generator that holds one frame at a time. Arguments as ``step``."""
        for frame in frames:
            yield self.step(frame)

    def run_template(self, template: MotionTemplate) -> Iterator[Frame]:
        """Animate with a motion template, from its first frame; yields arrays as ``step`` does."""
        self.reset()
        for motion in template.motions():
            yield self.step_motion(motion).cpu().numpy()

    @torch.no_grad()
    def _animate(self, motion: Motion, eye_ratio: float | None, lip_ratio: float | None) -> Tensor:
        expected = tuple(self._source.motion.exp.shape)
        if tuple(motion.exp.shape) != expected:
            raise InputError(f"the driving motion's exp must have shape {expected}, got {tuple(motion.exp.shape)}")
        first = motion if self._first is None else self._first
        if self._multiplier is None and self.options.expression_friendly:
            self._multiplier = convex_hull_multiplier(self._source.motion, self._source.x_s, first, self.options)
        x_d = drive(
            self.model,
            self._source.motion,
            self._source.x_s,
            motion,
            first,
            self.options,
            eye_ratio=eye_ratio,
            lip_ratio=lip_ratio,
            motion_multiplier=self._multiplier,
        )
        image = self.model.warp_decode(self._source.feature_3d, self._source.x_s, x_d)
        self._first, self._driving = first, motion
        return to_uint8(image)[0]
