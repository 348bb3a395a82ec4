"""conv_pool: a down block of the hourglass, its convolution, ReLU and average pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpkernels import _winograd, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference, triton_kernel


def _fake(*_: Any) -> None:
    return None


def _load() -> Callable[..., None]:
    from lpkernels.triton.conv_pool import conv_pool

    return conv_pool


def _torch(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    out.copy_(ref.conv_pool_in(x.dtype, x, weight, bias))


def _reference(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    out.copy_(ref.conv_pool_in(torch.float32, x, weight, bias))


def _hopper_refuses(signature: Signature) -> str | None:
    ((*_, channels), dtype), (weight, _), ((outputs,), _), *_ = signature
    if not _winograd.is_tiles(weight):
        return _conv.hopper_refuses(signature)
    if dtype == torch.float16 and outputs == 64 and (channels == 112 or channels % 64 == 0):
        return None
    return (
        "takes a weight of pack_winograd_weight in float16, for 112 channels or a multiple of 64 and 64 outputs; "
        f"got {dtype}, {channels}, {outputs}"
    )


_OP = Op(
    "conv_pool(Tensor x, Tensor weight, Tensor bias, Tensor(a!) out) -> ()",
    _fake,
    (
        native("conv_pool", "cuda", hopper=True, refuses=_hopper_refuses),
        triton_kernel("conv_pool", _load, refuses=_conv.taps_only),
        Backend("torch", _conv.torch_why_not, _torch, _conv.taps_only),
        reference(_reference),
    ),
)


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """A convolution of three taps an axis, ReLU, and the mean of every 2 x 2 pixels of a plane::

        y[d, h, w] = mean over i, j in (0, 1) of max(conv(x, weight, padding = 1) + bias, 0)[d, 2 h + i, 2 w + j]

    Args:
        x: (B, D, H, W, C), channels-last (slices of a wider buffer too), float16, bfloat16 or float32; H and W even.
        weight: (O, 3, 3, 3, C), the dtype of ``x``: ``pack_conv_weight``. Or (O, T, 4, 16), ``pack_winograd_weight``
            of it, together: sums of two neighbouring rows of ``x`` must then stay finite in float16.
        bias: (O,), float32.
        out: where to write y, channels-last, over none of the inputs; None: a new tensor.

    Returns:
        y, (B, D, H/2, W/2, O), which is ``out``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``out`` overlaps an input.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x, rank=5)
    batch, depth, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"x must have an even H and W, got {tuple(x.shape)}")
    _conv.taps_or_winograd("weight", weight, x, ("O",), (3, 3, 3), channels, together=(True,))
    outputs = weight.shape[0]
    _conv.float32("bias", bias, x, (outputs,))
    shape = (batch, depth, height // 2, width // 2, outputs)
    out = _conv.output(out, shape, x, x=x, weight=weight, bias=bias)
    _OP(x, weight, bias, out)
    return out
