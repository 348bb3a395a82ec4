"""Channels-last tensors: PyTorch's view of them, and the distance between their pixels.

An activation is (B, H, W, C) or (B, D, H, W, C) with channels next to each other and dense pixels: strides
(..., W * P, P, 1). The pixel stride P exceeds C where the tensor is a slice of channels of a wider buffer.
"""

from __future__ import annotations

from torch import Tensor


def pixel_stride(tensor: Tensor) -> int | None:
    """Elements from one pixel to the next; None where the tensor is not channels-last with dense pixels."""
    channels = tensor.shape[-1]
    if channels > 1 and tensor.stride(-1) != 1:
        return None
    found, pixels = None, 1
    for size, stride in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1]), strict=True):
        if size == 1:
            continue  # its stride is never used
        if found is None:
            found = stride // pixels
        if stride != found * pixels:
            return None
        pixels *= size
    if found is None:
        return channels
    return found if found >= channels else None


def planes(tensor: Tensor) -> Tensor:
    """A channels-last activation (B, ..., C) as (B, C, ...), or a weight (O, taps..., C) as (O, C, taps...): a view.

    Its strides are PyTorch's channels_last, so that cuDNN takes its NHWC kernels; a slice is copied by PyTorch there.
    """
    return tensor.movedim(-1, 1)


def pixels(tensor: Tensor) -> Tensor:
    """The inverse of ``planes``: (B, C, ...) as (B, ..., C)."""
    return tensor.movedim(1, -1)
