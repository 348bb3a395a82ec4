"""Convolutions of images that are given as their classes (``lpkernels.rewrites``): the sum, phase by phase."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lpkernels.rewrites import CLASS_OF_ROW, CLASSES, class_taps

PHASES = len(CLASS_OF_ROW)


def conv_from_classes(classes: Tensor, weight: Tensor) -> Tensor:
    """Classes (B, C, 3h, 3w) and kernels (16 O, C, 3, 3) of ``class_conv_phases`` -> (B, O, 4h, 4w)."""
    batch, _, height, width = classes.shape
    height, width = height // CLASSES, width // CLASSES
    padded, phases = F.pad(classes, (1, 1, 1, 1)), weight.unflatten(0, (PHASES, PHASES, -1))
    y = classes.new_empty(batch, phases.shape[2], PHASES * height, PHASES * width)
    for r in range(PHASES):
        for q in range(PHASES):
            (top, rows), (left, columns) = class_taps(r), class_taps(q)
            seen = padded[:, :, top + 1 : top + CLASSES * height + 1, left + 1 : left + CLASSES * width + 1]
            kernel = phases[r, q][:, :, :rows, :columns]
            y[:, :, r::PHASES, q::PHASES] = F.conv2d(seen, kernel, stride=CLASSES)
    return y
