"""Paste-back: animated crops in their places in the picture that they were cut from, on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lpkernels import ops
from lpkernels.animate.crop import Crop, feathered_mask
from lpkernels.animate.image import Box, Frame, check_frame
from lpkernels.errors import InputError


@dataclass(frozen=True, eq=False)
class Place:
    """Where one crop goes.

    Attributes:
        matrix: M_c2o, 2x3, six numbers: from the crop's pixels to the picture's.
        box: x, y, width, height of ``mask`` in the picture.
        mask: (height, width) uint8, the crop's feathered mask, warped into the picture.
    """

    matrix: list[float]
    box: Box
    mask: Tensor


@dataclass(frozen=True, eq=False)
class PasteBack:
    """A picture and the places of one or more crops in it; see ``prepare_paste_back``.

    Attributes:
        picture: (H, W, 3) uint8, on the model's device.
        places: one for each crop; of two that overlap, the later lies above.
    """

    picture: Tensor
    places: tuple[Place, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.picture.shape[0], self.picture.shape[1]

    def new(self, images: Tensor) -> Tensor:
        """The whole picture with the animated crops in it, in new memory.

        Args:
            images: (B, S, S, 3) uint8 on the picture's device: B frames of one crop, or one frame of B crops.

        Returns:
            (B, H, W, 3) uint8, or (1, H, W, 3) of several crops.
        """
        if len(self.places) == 1:
            return ops.paste_back(images, self.picture, *_arguments(self.places[0]))
        canvas = self.canvas(len(images))
        self._lay(images, canvas)
        return canvas

    def onto(self, images: Tensor, canvas: Tensor) -> None:
        """The same on a canvas that holds this picture, or an earlier frame: only the crops' pixels are written.

        Args:
            images: as for ``new``.
            canvas: as ``canvas`` gives it.
        """
        if len(self.places) == 1:
            ops.paste_back(images, self.picture, *_arguments(self.places[0]), copy_rest=False, out=canvas)
            return
        for place in self.places:  # all before any is laid: crops may overlap
            x, y, width, height = place.box
            part = (slice(y, y + height), slice(x, x + width))
            canvas[0][part].copy_(self.picture[part])
        self._lay(images, canvas)

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """The shape of what becomes of ``batch`` animated pictures."""
        return (batch if len(self.places) == 1 else 1, *self.size, 3)

    def canvas(self, batch: int) -> Tensor:
        """Memory for ``onto`` and ``batch`` animated pictures, with the picture in it."""
        return self.picture.expand(self.shape(batch)).clone()

    def tensors(self) -> list[Tensor]:
        """All that lies on the device."""
        return [self.picture, *(place.mask for place in self.places)]

    def moved(self, picture: Frame | Tensor) -> PasteBack:
        """The same places in another picture of this size, such as the next frame of a video."""
        return replace(self, picture=_on_device("picture", picture, self.picture.device))

    def _lay(self, images: Tensor, canvas: Tensor) -> None:
        for image, place in zip(images.split(1), self.places, strict=True):
            ops.paste_back(image, canvas, *_arguments(place), copy_rest=False, out=canvas)


def prepare_paste_back(
    picture: Frame | Tensor, crops: Sequence[Crop], size: int, device: torch.device | str
) -> PasteBack:
    """Bring a picture to the device, and warp the mask of each crop into it: once per source.

    Args:
        picture: uint8 (H, W, 3), RGB: the whole picture.
        crops: at least one, each of ``size``.
        size: side of the animated pictures, ``LivePortraitConfig.output_size``.

    Raises:
        InputError: no crop, one of another size, or one outside the picture.
        TypeError, ValueError: no such picture.
    """
    whole = _on_device("picture", picture, torch.device(device))
    if not crops:
        raise InputError("crops must hold at least one crop, got none")
    return PasteBack(whole, tuple(_place(whole, crop, size) for crop in crops))


def _place(picture: Tensor, crop: Crop, size: int) -> Place:
    if crop.size != size:
        raise InputError(f"crop must have size {size}, the model's output size, to be pasted back; got {crop.size}")
    height, width = picture.shape[:2]
    try:
        box, mask = ops.warp_mask(feathered_mask(size).to(picture.device), crop.M_c2o, (height, width))
    except ValueError:
        extent = f"{width}x{height}"
        raise InputError(f"the crop lies outside the picture, which is {extent}: its box is {crop.box}") from None
    return Place(crop.M_c2o[:2].flatten().tolist(), box, mask)


def _arguments(place: Place) -> tuple[Tensor, list[float], Box]:
    return place.mask, place.matrix, place.box


def _on_device(name: str, picture: Frame | Tensor, device: torch.device) -> Tensor:
    check_frame(name, picture)
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(np.require(picture, requirements=["C", "W"]))
    return picture.to(device).contiguous()
