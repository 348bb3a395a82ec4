"""From a baseline network's parameters to a layer's: norms folded, channels moved to where the buffers have them.

All in float64, rounded once when a layer takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lpkernels import rewrites
from lpkernels.models.blocks import SpectralConv2d

Conv = tuple[Tensor, Tensor]
"""A convolution's weight (out, in, taps...) and bias (out,), float64."""

CHANNEL_MULTIPLE = 16  # of a buffer
PART_MULTIPLE = 8  # of the parts of a concatenated buffer: 16 bytes of halves


def round_up(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def plain(conv: nn.Module) -> Conv:
    """A convolution as it is, spectral norm folded; a missing bias is zero."""
    if isinstance(conv, SpectralConv2d):
        u, v = conv.weight_u.double(), conv.weight_v.double()
        weight = rewrites.fold_spectral_norm(conv.weight_orig.detach().double(), u, v)
    else:
        weight = _float64(conv.weight)
    return weight, weight.new_zeros(weight.shape[0]) if conv.bias is None else _float64(conv.bias)


def folded(conv: nn.Module, norm: nn.Module) -> Conv:
    """A convolution and the BatchNorm after it as one convolution."""
    weight, bias = plain(conv)
    gamma, beta, mean, var = (
        _float64(getattr(norm, name)) for name in ("weight", "bias", "running_mean", "running_var")
    )
    return rewrites.fold_batch_norm(weight, bias, gamma, beta, mean, var, float(norm.eps))  # type: ignore[arg-type]


def place(tensor: Tensor, axis: int, parts: Sequence[tuple[int, int]]) -> Tensor:
    """Spread an axis over the parts of a padded buffer.

    Args:
        parts: (channels, padded channels) of each part, in order; the channels add up to the axis.
    """
    padded = []
    for piece, (width, room) in zip(tensor.split([width for width, _ in parts], axis), parts, strict=True):
        shape = list(piece.shape)
        shape[axis] = room - width
        padded.append(torch.cat([piece, piece.new_zeros(shape)], axis))
    return torch.cat(padded, axis)


def pad_outputs(conv: Conv, outputs: int) -> Conv:
    """Outputs beyond the convolution's own, all zero: what the padding of a buffer holds."""
    weight, bias = conv
    parts = [(weight.shape[0], outputs)]
    return place(weight, 0, parts), place(bias, 0, parts)


def channels_last(weight: Tensor) -> Tensor:
    """(out, in, taps...) as the ops take it, (out, taps..., in)."""
    return weight.movedim(1, -1).contiguous()


def _float64(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value.detach().double()
