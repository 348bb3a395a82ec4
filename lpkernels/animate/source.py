"""The source picture, read once: everything about it that does not change from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lpkernels.animate.crop import Crop, crop_from_box, crop_picture
from lpkernels.animate.extract import network_input, read_motion
from lpkernels.animate.face import find_crops
from lpkernels.animate.image import Box, Frame, check_box, check_frame, load_image, to_batch
from lpkernels.animate.image import crop as cut
from lpkernels.animate.motion import Motion, source_keypoints
from lpkernels.animate.paste import PasteBack, prepare_paste_back
from lpkernels.errors import InputError
from lpkernels.models.portrait_model import PortraitModel

OneCrop = Box | Crop | Literal["auto"]
"""What to cut out of a picture: x, y, width, height in pixels, a ``Crop``, or around its largest face."""

SourceCrop = OneCrop | Literal["all"] | Sequence[Box | Crop]
"""The same of a source: also around all of its faces, or several boxes and crops."""


@dataclass(frozen=True)
class Source:
    """A prepared source picture.

    Attributes:
        image: the picture after cropping, uint8 (H, W, 3); of several faces the whole picture.
        whole: what output frames show: the whole picture where it is pasted back into, else ``image``.
        feature_3d: F's feature volume, (N, C, D, h, w) float32, of N faces.
        motion: the source's own pose, expression and canonical keypoints, batch N.
        x_s: its keypoints in the picture (Eqn. 2), (N, K, 3) float32.
        paste: the whole picture, to put animated crops back into; None where that was not asked for.
    """

    image: Frame
    whole: Frame
    feature_3d: Tensor
    motion: Motion
    x_s: Tensor
    paste: PasteBack | None = None

    @property
    def faces(self) -> int:
        """N, the number of crops that are animated at once."""
        return self.x_s.shape[0]


def prepare_source(
    model: PortraitModel[Any],
    source: Frame | Tensor | str | Path,
    crop: SourceCrop | None = None,
    paste_back: bool = False,
    *,
    motion: Motion | None = None,
    like: Source | None = None,
) -> Source:
    """Run F and M on a source picture.

    The picture, or the ``crop`` cut from it, is squeezed into the networks' square, as the original does when its face
    detector is off: the face should fill most of it, and what is not square is distorted.

    Args:
        source: uint8 (H, W, 3) RGB array or tensor, or the path of a picture.
        crop: a box x, y, width, height in pixels; a ``Crop``, which may be turned and may leave the picture; or
            ``"auto"``: around the largest face, found with the extra ``lpkernels[face]``. Several faces, as one batch:
            ``"all"``, or a list of boxes and crops, of which the later lies above.
        paste_back: keep the whole picture on the model's device, and the crop's mask warped into it; several crops
            need it.
        motion: what M read in this picture and crop, where that is known.
        like: a source of the same size and crop, whose warped mask is used again.

    Raises:
        InputError: the file cannot be read as a picture, the crop leaves it, or no face was found; with
            ``paste_back``, a ``Crop`` that has not the model's output size; several crops without ``paste_back``.
        TypeError, ValueError: the array is not a picture.
    """
    picture = load_image(source) if isinstance(source, str | Path) else source
    check_frame("source", picture)
    crops = find_crops(picture, model.config.output_size) if _is(crop, "all") else listed(crop)
    if len(crops) > 1 and not paste_back:
        raise InputError(f"crop: {len(crops)} crops of one picture are pasted back into it: pass paste_back=True")
    parts, places = zip(*(cut_out(model, picture, one) for one in crops), strict=True)
    image = torch.cat([network_input(model, "source", part) for part in parts])
    motion = read_motion(model, image) if motion is None else motion
    paste = None
    if paste_back:
        again = None if like is None else like.paste
        size = model.config.output_size
        paste = prepare_paste_back(picture, places, size, model.device) if again is None else again.moved(picture)
    cropped = _array(parts[0] if len(parts) == 1 else picture)
    whole = _array(picture) if paste_back else cropped
    return Source(cropped, whole, model.extract_feature_3d(image), motion, source_keypoints(motion), paste)


def cut_out(model: PortraitModel[Any], picture: Frame | Tensor, crop: OneCrop | None) -> tuple[Frame | Tensor, Crop]:
    """The part of a picture that is animated, uint8 (H, W, 3), and its place; arguments as ``prepare_source``."""
    check_frame("source", picture)
    size = model.config.output_size
    if isinstance(crop, str):
        if crop != "auto":
            raise InputError(f"crop must be a box x, y, width, height, a Crop, or 'auto'; got {crop!r}")
        crop = find_crops(picture, size)[0]
    if isinstance(crop, Crop):
        return crop_picture(to_batch("source", picture, model.device)[0], crop), crop
    if crop is None:
        return picture, crop_from_box((0, 0, picture.shape[1], picture.shape[0]), size)
    part: Frame | Tensor = cut(picture, crop)  # type: ignore[type-var]  # either of the two
    return part, crop_from_box(crop, size)


def listed(crop: SourceCrop | None) -> Sequence[Any]:
    """One crop or several, each for ``cut_out``.

    Raises:
        InputError: an empty list, or something in it that is neither box nor ``Crop``.
    """
    if crop is None or isinstance(crop, str | Crop) or not isinstance(crop, Sequence):
        return [crop]
    if not crop:
        raise InputError("crop must hold at least one crop, got none")
    if isinstance(crop[0], Real):
        return [crop]
    several: list[Any] = list(crop)
    for one in several:
        if not isinstance(one, Crop):
            check_box(one)
    return several


def _is(crop: object, word: str) -> bool:
    return isinstance(crop, str) and crop == word


def _array(picture: Frame | Tensor) -> Frame:
    return picture.cpu().numpy() if isinstance(picture, Tensor) else picture
