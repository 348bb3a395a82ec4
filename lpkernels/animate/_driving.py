"""What drives: a video, a motion template or one picture, behind one interface."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from lpkernels.animate._files import existing_file
from lpkernels.animate.face import find_driving_box
from lpkernels.animate.image import Box, Frame, crop, crop_padded, is_image_path, load_image
from lpkernels.animate.template import MotionTemplate, load_template
from lpkernels.animate.video import VideoReader
from lpkernels.errors import InputError

_TEMPLATE_SUFFIXES = (".pkl", ".pickle", ".safetensors")
_PICTURE_FPS = Fraction(25)
_LOOKED_AT = 24  # frames of a clip in which the face is looked for


@dataclass(frozen=True)
class Driving:
    """A driving file that was opened once and found readable.

    Attributes:
        fps: frames per second.
        frame_count: number of frames; None if the file does not say.
        template: the motion, if the file is a template.
        still: whether it is one picture.
        crop: x, y, width, height of the face in every frame.
        padded: ``crop`` may leave the picture, which is black there.
    """

    path: Path
    fps: Fraction | float
    frame_count: int | None
    template: MotionTemplate | None = None
    still: bool = False
    crop: Box | None = None
    padded: bool = False

    def frames(self) -> Iterator[Frame]:
        """The driving pictures from the first one on, cropped; none for a template."""
        if self.still:
            yield self._cut(load_image(self.path))
        elif self.template is None:
            with VideoReader(self.path) as reader:
                for frame in reader:
                    yield self._cut(frame)

    def _cut(self, frame: Frame) -> Frame:
        if self.crop is None:
            return frame
        return (crop_padded if self.padded else crop)(frame, self.crop)

    def around_face(self) -> Driving:
        """The same with the crop around the face."""
        step = max(1, (self.frame_count or 0) // _LOOKED_AT)
        box = find_driving_box(itertools.islice(self.frames(), 0, None, step))
        if box is None:
            raise InputError(f"no face was found in {self.path}; give a box as driving crop, x,y,width,height")
        return replace(self, crop=box, padded=True)


def open_driving(path: str | Path, box: Box | str | None = None) -> Driving:
    """Open a driving file: .pkl and .safetensors are templates, the usual picture suffixes a picture, the rest videos.

    Args:
        box: x, y, width, height of the face in every frame, in pixels; ``"auto"``: the mean box around the largest
            face in up to some 24 frames, read ahead of the rest.

    Raises:
        InputError: the file cannot be read as what its name says, ``box`` leaves its pictures, a template has a box, or
            no face was found.
    """
    path = existing_file(path, "driving file")
    if path.suffix.lower() in _TEMPLATE_SUFFIXES:
        if box is not None:
            raise InputError(f"driving crop: {path} is a motion template, it has no picture to crop; leave the box out")
        template = load_template(path)
        return Driving(path, template.fps, template.n_frames, template)
    if isinstance(box, str) and box != "auto":
        raise InputError(f"driving crop must be a box x, y, width, height, or 'auto'; got {box!r}")
    given = None if isinstance(box, str) else box
    if is_image_path(path):
        driving = Driving(path, _PICTURE_FPS, 1, still=True, crop=given)
    else:
        with VideoReader(path) as reader:
            driving = Driving(path, reader.fps, reader.frame_count, crop=given)
    if isinstance(box, str):
        return driving.around_face()
    next(driving.frames())  # a box that leaves the picture is reported now
    return driving
