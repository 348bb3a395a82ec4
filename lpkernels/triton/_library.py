"""PyTorch's own convolution as the first half of an op whose second half, all that follows it, is a Triton kernel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lpkernels._channels_last import pixels, planes


def convolve(x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Convolution of stride 1 without bias, channels-last: (B, ..., O), contiguous, the dtype of ``x``.

    Args:
        x: (B, [D,] H, W, C), a slice of a wider buffer too (PyTorch then copies it, except for a single tap).
        weight: (O, taps..., C), contiguous.
        padding: one entry per spatial axis.
    """
    if weight.shape[1:-1].numel() == 1:
        return F.linear(x, weight.flatten(1))
    function = F.conv3d if x.dim() == 5 else F.conv2d
    return pixels(function(planes(x), planes(weight), padding=padding)).contiguous()
