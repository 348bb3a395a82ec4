"""Faces found in pictures, and the crops around them; needs the extra ``lpkernels[face]``.

The original crops a face by its outline, of some hundred landmarks. The detector here gives five (eyes, nose, corners
of the mouth); ``_OUTLINE`` and ``_LOWER`` say where an outline lies about them: means over photographed, painted and
drawn faces on which a mesh of 468 points was measured as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lpkernels.animate import _mtcnn
from lpkernels.animate.crop import Crop, crop_from_landmarks
from lpkernels.animate.image import Box, Frame, check_frame
from lpkernels.animate.landmarks import Array, face_square
from lpkernels.errors import InputError

_OUTLINE = 2.04  # the outline's extent by that of the five landmarks
_LOWER = 0.085  # how far below the middle of the five the outline's lies, in outlines
# The original's scale and shift, of the outline and of the crop's side.
_SOURCE = (2.3, -0.125)
_DRIVING = (2.2, -0.1)


def check_face_finder() -> None:
    """Raise InputError, with the command that installs it, where the extra ``face`` is missing."""
    _mtcnn.check_installed()


def find_landmarks(picture: Frame | Tensor) -> list[Array]:
    """Five landmarks (5, 2) of each face in a picture, the largest face first.

    (x, y) in pixels, pixel centres at whole numbers: the eye on the left of the picture, the one on the right, the tip
    of the nose, the left and right corners of the mouth; what ``crop_from_landmarks`` takes. Upright faces are found,
    turned by up to about 45 degrees, from a 24th of the picture's shorter side on.

    Args:
        picture: uint8 (H, W, 3), RGB; array or tensor.

    Raises:
        InputError: the extra ``lpkernels[face]`` is not installed.
        TypeError, ValueError: no such picture.
    """
    check_frame("picture", picture)
    pixels = picture if isinstance(picture, Tensor) else torch.from_numpy(np.require(picture, requirements=["C", "W"]))
    faces = sorted(_mtcnn.find(pixels), key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))
    return [face.landmarks - 0.5 for face in faces]


def find_crops(picture: Frame | Tensor, size: int = 512) -> list[Crop]:
    """The crop around each face in a picture as the original makes it of a source, turned upright; largest first.

    Args, errors: as ``find_landmarks``; ``size`` is the crops' side in their own pixels.

    Raises:
        InputError: no face was found.
    """
    crops = [face_crop(landmarks, size) for landmarks in find_landmarks(picture)]
    if not crops:
        height, width = picture.shape[:2]
        raise InputError(f"no face was found in the picture, {width}x{height}; give a box around it, x,y,width,height")
    return crops


def face_crop(landmarks: Array, size: int = 512) -> Crop:
    """The crop around one face of ``find_landmarks``."""
    scale, shift = _by_five(*_SOURCE)
    return crop_from_landmarks(landmarks, size, scale=scale, vy_ratio=shift)


def find_driving_box(frames: Iterable[Frame]) -> Box | None:
    """One box for a whole driving clip: the mean of the original's boxes around the largest face in each frame.

    Returns:
        x, y, width, height in whole pixels: a square that may leave the picture; None if no frame has a face.

    Raises: as ``find_landmarks``.
    """
    scale, shift = _by_five(*_DRIVING)
    found = []
    for frame in frames:
        for landmarks in find_landmarks(frame)[:1]:
            square = face_square(landmarks, scale=scale, vy_ratio=shift)
            found.append([*square.centre, square.side])
    if not found:
        return None
    x, y, side = np.mean(found, axis=0)
    length = max(1, round(float(side)))
    return round(float(x + 0.5 - length / 2)), round(float(y + 0.5 - length / 2)), length, length


def _by_five(scale: float, shift: float) -> tuple[float, float]:
    """A crop's scale and shift of the outline as those of the five landmarks."""
    return scale * _OUTLINE, shift + _LOWER / scale
