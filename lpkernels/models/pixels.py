"""8-bit pictures as the networks read and write them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import _checks


def resize_uint8(images: Tensor, size: int) -> Tensor:
    """Squeeze whole pictures into the networks' square input.

    Bilinear with half-pixel centres, no antialiasing, rounded to whole levels: what OpenCV's ``INTER_LINEAR`` gives on
    8-bit pictures to within one level, which is how the published model was fed. The aspect ratio is not kept, as in
    the original; crop first where that matters.

    Args:
        images: (B, H, W, 3) uint8, any device.
        size: side of the square in pixels.

    Returns:
        (B, 3, size, size) float32 in 0..1 on the device of ``images``.
    """
    _checks.is_tensor("images", images)
    _checks.shape("images", images, ("B", "H", "W", 3))
    _checks.dtype("images", images, (torch.uint8,))
    levels = images.permute(0, 3, 1, 2).float()
    if levels.shape[2:] != (size, size):
        levels = F.interpolate(levels, (size, size), mode="bilinear", align_corners=False)
        levels = levels.add_(0.5).floor_().clamp_(0, 255)
    return levels / 255


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) float in 0..1 to (B, H, W, 3) uint8: clipped, times 255, truncated as the original does."""
    return (images.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
