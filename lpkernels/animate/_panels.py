"""Pictures set side by side at one height."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lpkernels.animate.image import Frame

_WIDEST = 4  # a panel's width in heights: a panorama is squeezed rather than left to overflow the encoder


class SideBySide:
    """Scales pictures to ``height`` and sets them in a row; each place keeps the width of its first picture."""

    def __init__(self, height: int) -> None:
        self.height = height
        self._widths: dict[int, int] = {}
        self._fitted: dict[int, tuple[Frame, Frame]] = {}

    def join(self, *pictures: Frame) -> Frame:
        """uint8 (H, W, 3) pictures of any sizes -> uint8 (height, sum of widths, 3)."""
        return np.concatenate([self._fit(place, picture) for place, picture in enumerate(pictures)], axis=1)

    def _fit(self, place: int, picture: Frame) -> Frame:
        given, fitted = self._fitted.get(place, (None, None))
        if fitted is not None and given is picture:
            return fitted
        rows, columns = picture.shape[:2]
        width = self._widths.setdefault(place, min(max(1, round(columns * self.height / rows)), _WIDEST * self.height))
        if (rows, columns) == (self.height, width):
            return picture
        image = Image.fromarray(np.ascontiguousarray(picture))
        fitted = np.asarray(image.resize((width, self.height), Image.Resampling.BILINEAR))
        self._fitted[place] = (picture, fitted)
        return fitted
