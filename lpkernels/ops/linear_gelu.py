"""linear_gelu: the widening linear layer of a ConvNeXt block, its GELU, and what response norm asks of the answer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Backend, Op, reference, triton_kernel

Pair = tuple[Tensor, Tensor]


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    batch, height, width, _ = x.shape
    pixels, outputs = height * width, weight.shape[0]
    blocks = -(-pixels // ref.row_block(pixels))
    return x.new_empty((*x.shape[:3], outputs)), x.new_empty((batch, blocks, outputs), dtype=torch.float32)


def _load() -> Callable[..., Pair]:
    from lpkernels.triton.linear_gelu import linear_gelu

    return linear_gelu


def _plain(compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    h, squares = ref.linear_gelu_in(compute, x, weight, bias)
    return h.to(x.dtype), squares


_OP = Op(
    "linear_gelu(Tensor x, Tensor weight, Tensor bias) -> (Tensor h, Tensor squares)",
    _fake,
    (
        triton_kernel("linear_gelu", _load, refuses=_convnext.no_tensor_cores),
        Backend("torch", _conv.torch_why_not, lambda x, *args: _plain(x.dtype, x, *args)),
        reference(lambda *args: _plain(torch.float32, *args)),
    ),
)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    """``h = gelu(x W^T + b)`` per pixel, the exact GELU, and the sums of squares of h over blocks of pixels.

    Global response norm, which follows, needs the norm of each channel over an image. Each program of the kernel leaves
    the sum of its own pixels in a row of ``squares``; ``grn_linear`` adds the rows up in order. There are no atomics:
    every run gives the same bits.

    Args:
        x: (B, H, W, K), channels-last, float16, bfloat16 or float32.
        weight: (N, K), the dtype of ``x``.
        bias: (N,), float32.

    Returns:
        h (B, H, W, N), the dtype of ``x``, and squares (B, R, N), float32: row r is the sum over pixels r * P up to
        (r + 1) * P of an image, with P = ``lpkernels.ref.row_block(H * W)``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    x = _convnext.activation("x", x)
    _conv.weight("weight", weight, x, ("N", x.shape[3]))
    _conv.float32("bias", bias, x, (weight.shape[0],))
    pair: Pair = _OP(x, weight, bias)
    return pair
