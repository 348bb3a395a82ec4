"""What drives: a video, a motion template or one picture, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lpkernels.animate._files import existing_file
from lpkernels.animate.image import Box, Frame, crop, is_image_path, load_image
from lpkernels.animate.template import MotionTemplate, load_template
from lpkernels.animate.video import VideoReader
from lpkernels.errors import InputError

_TEMPLATE_SUFFIXES = (".pkl", ".pickle", ".safetensors")
_PICTURE_FPS = Fraction(25)


@dataclass(frozen=True)
class Driving:
    """A driving file that was opened once and found readable.

    Attributes:
        fps: frames per second.
        frame_count: number of frames; None if the file does not say.
        template: the motion, if the file is a template.
        still: whether it is one picture.
    """

    path: Path
    fps: Fraction | float
    frame_count: int | None
    template: MotionTemplate | None = None
    still: bool = False
    crop: Box | None = None

    def frames(self) -> Iterator[Frame]:
        """The driving pictures from the first one on, cropped; none for a template."""
        if self.still:
            yield self._cut(load_image(self.path))
        elif self.template is None:
            with VideoReader(self.path) as reader:
                for frame in reader:
                    yield self._cut(frame)

    def _cut(self, frame: Frame) -> Frame:
        return frame if self.crop is None else crop(frame, self.crop)


def open_driving(path: str | Path, box: Box | None = None) -> Driving:
    """Open a driving file: .pkl and .safetensors are templates, the usual picture suffixes a picture, the rest videos.

    Args:
        box: x, y, width, height of the face in every frame, in pixels.

    Raises:
        InputError: the file cannot be read as what its name says, ``box`` leaves its pictures, or a template has a box.
    """
    path = existing_file(path, "driving file")
    if path.suffix.lower() in _TEMPLATE_SUFFIXES:
        if box is not None:
            raise InputError(f"driving crop: {path} is a motion template, it has no picture to crop; leave the box out")
        template = load_template(path)
        return Driving(path, template.fps, template.n_frames, template)
    if is_image_path(path):
        driving = Driving(path, _PICTURE_FPS, 1, still=True, crop=box)
    else:
        with VideoReader(path) as reader:
            driving = Driving(path, reader.fps, reader.frame_count, crop=box)
    next(driving.frames())  # a box that leaves the picture is reported now
    return driving
