"""The source picture, read once: everything about it that does not change from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lpkernels.animate.extract import network_input, read_motion
from lpkernels.animate.image import Box, Frame, check_frame, load_image
from lpkernels.animate.image import crop as cut
from lpkernels.animate.motion import Motion, source_keypoints
from lpkernels.models.portrait_model import PortraitModel


@dataclass(frozen=True)
class Source:
    """A prepared source picture.

    Attributes:
        image: the picture after cropping, uint8 (H, W, 3).
        feature_3d: F's feature volume, (1, C, D, h, w) float32.
        motion: the source's own pose, expression and canonical keypoints, batch 1.
        x_s: its keypoints in the picture (Eqn. 2), (1, K, 3) float32.
    """

    image: Frame
    feature_3d: Tensor
    motion: Motion
    x_s: Tensor


def prepare_source(model: PortraitModel[Any], source: Frame | Tensor | str | Path, crop: Box | None = None) -> Source:
    """Run F and M on a source picture.

    The picture, or the ``crop`` cut from it, is squeezed into the networks' square, as the original does when its face
    detector is off: the face should fill most of it, and what is not square is distorted.

    Args:
        source: uint8 (H, W, 3) RGB array or tensor, or the path of a picture.
        crop: x, y, width, height in pixels.

    Raises:
        InputError: the file cannot be read as a picture, or the crop leaves it.
        TypeError, ValueError: the array is not a picture.
    """
    picture = load_image(source) if isinstance(source, str | Path) else source
    check_frame("source", picture)
    pixels = picture.cpu().numpy() if isinstance(picture, Tensor) else picture
    if crop is not None:
        pixels = cut(pixels, crop)
    image = network_input(model, "source", pixels)
    motion = read_motion(model, image)
    return Source(pixels, model.extract_feature_3d(image), motion, source_keypoints(motion))
