"""instance_norm_stats: mean and reciprocal deviation of every channel, for tensors that came without them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, reference, triton_kernel


def _fake(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[-1], 2), dtype=torch.float32)


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.instance_norm_stats import instance_norm_stats

    return instance_norm_stats


_OP = Op(
    "instance_norm_stats(Tensor x) -> Tensor stats",
    _fake,
    (
        triton_kernel("instance_norm_stats", _load),
        Backend("torch", _conv.torch_why_not, ref.instance_norm_stats),
        reference(ref.instance_norm_stats),
    ),
)


def instance_norm_stats(x: Tensor) -> Tensor:
    """What an instance norm without affine parameters asks of its input: ``(x - mean) * rstd`` is its answer.

    The decoder's convolutions leave these behind (``conv_act``); this is for the tensors that come from elsewhere. Mean
    and squared differences are taken per block of pixels and combined in a fixed order, so that a mean much larger than
    the deviation does no harm and every run gives the same bits.

    Args:
        x: (B, H, W, C), channels-last (a slice of a wider buffer too), float16, bfloat16 or float32.

    Returns:
        (B, C, 2), float32: mean and 1 / sqrt(var + 1e-5) over H and W, the variance biased.

    Raises:
        TypeError: ``x`` is no tensor or has a wrong dtype.
        ValueError: its shape or strides do not fit.
        BackendError: no allowed backend can run this call.
        RuntimeError: ``x`` requires a gradient.
    """
    _conv.activation("x", x, 4)
    stats: Tensor = _OP(x)
    return stats
