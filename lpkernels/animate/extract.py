"""From pictures to motion: what the motion extractor reads in a frame, and in a whole clip."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from lpkernels.animate.image import Frame, to_batch
from lpkernels.animate.motion import Motion, refine_motion, source_keypoints
from lpkernels.animate.template import MotionTemplate
from lpkernels.errors import InputError
from lpkernels.models.pixels import resize_uint8
from lpkernels.models.portrait_model import PortraitModel


def network_input(model: PortraitModel[Any], name: str, frame: Frame | Tensor) -> Tensor:
    """A frame of any size as the networks take it: (1, 3, S, S) float32 in 0..1 on the model's device.

    Args:
        name: the argument's name, for error messages.
        frame: uint8 (H, W, 3), RGB; the whole picture is squeezed into the square.

    Raises:
        TypeError, ValueError: not such a frame.
    """
    return resize_uint8(to_batch(name, frame, model.device), model.config.image_size)


def read_motion(model: PortraitModel[Any], image: Tensor) -> Motion:
    """M and its refinement: image (B, 3, S, S) -> keypoints, expression, rotation, translation, scale."""
    return refine_motion(model.extract_motion(image))


def extract_template(
    model: PortraitModel[Any], frames: Iterable[Frame | Tensor], fps: Fraction | float = 25
) -> MotionTemplate:
    """The motion of a clip, to be kept and replayed without its pictures or the motion extractor.

    Args:
        frames: uint8 (H, W, 3) RGB frames of any size; read one at a time.
        fps: frames per second.

    Raises:
        InputError: there is no frame.
        TypeError, ValueError: something that is not a frame.
    """
    return collect_template((read_motion(model, network_input(model, "frame", frame)) for frame in frames), fps)


def collect_template(motions: Iterable[Motion], fps: Fraction | float) -> MotionTemplate:
    """Motions of one frame each (batch 1) as a template.

    Raises:
        InputError: there is no motion.
    """
    kept = [motion.to("cpu") for motion in motions]
    if not kept:
        raise InputError("a motion template needs at least one driving frame, got none")

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(motion, name) for motion in kept])

    return MotionTemplate(
        n_frames=len(kept),
        fps=float(fps),
        R=joined("R"),
        exp=joined("exp"),
        t=joined("t"),
        scale=joined("scale"),
        kp=joined("kp"),
        x_s=torch.cat([source_keypoints(motion) for motion in kept]),
    )
