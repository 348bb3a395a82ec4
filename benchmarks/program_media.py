"""What a program is given to animate: drawn pictures, or a user's files, from whose middle the face is taken."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lpkernels.animate.crop import Crop, Square, crop_from_square, crop_picture
from lpkernels.animate.image import Frame, load_image
from lpkernels.animate.portrait import SOURCE_LOOK, draw_portrait, driving_frames
from lpkernels.errors import InputError

INPUT = 256  # pixels: the size that the original brings the source and every driving frame to
PICTURE = (720, 1280)  # height, width of the whole picture around a drawn face
ANGLE = 8.0  # degrees by which the face's square is turned
MARGIN = 0.8  # the square's side over the picture's shorter one


@dataclass(frozen=True, eq=False)
class Media:
    """One picture and one clip.

    Attributes:
        picture: uint8 (H, W, 3), the whole source picture.
        crop: the face in it, of the size of the animated picture.
        source: uint8 (256, 256, 3), the face.
        frames: of the clip, each uint8 (256, 256, 3).
        of_files: whether they are a user's.
    """

    picture: Frame
    crop: Crop
    source: Frame
    frames: list[Frame]
    of_files: bool


def drawn(count: int, size: int) -> Media:
    """The drawn portrait and the first ``count`` frames of its drawn clip; the animated picture's side is ``size``."""
    picture = np.full((*PICTURE, 3), SOURCE_LOOK.skin, np.uint8)
    crop = crop_from_square(Square((0.5 * PICTURE[1], 0.5 * PICTURE[0]), 400, ANGLE), size)
    return Media(picture, crop, draw_portrait(INPUT), list(driving_frames(count, INPUT)), of_files=False)


def loaded(source: Path, driving: Path, count: int, size: int) -> Media:
    """A picture, with a square in its middle as the face, and the first ``count`` frames of a square clip.

    Raises:
        InputError: a file cannot be read, or the clip is not square.
    """
    from lpkernels.animate.video import VideoReader

    picture = load_image(source)
    height, width = picture.shape[:2]
    square = Square((0.5 * width, 0.5 * height), MARGIN * min(height, width), ANGLE)
    with VideoReader(driving) as reader:
        if reader.size[0] != reader.size[1]:
            raise InputError(f"driving must be a square clip, got {reader.size[0]}x{reader.size[1]}: {driving}")
        frames = [_resized(frame) for frame in itertools.islice(reader, count)]
    source_face = crop_picture(picture, crop_from_square(square, INPUT))
    return Media(picture, crop_from_square(square, size), source_face, frames, of_files=True)


def _resized(frame: Frame) -> Frame:
    return np.asarray(Image.fromarray(frame).resize((INPUT, INPUT), Image.Resampling.BILINEAR))
