"""depthwise_linear: the first half of a ConvNeXt block, from its depthwise convolution to its GELU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Backend, Op, native, reference, triton_kernel

KERNEL = 7
MOST_CHANNELS = 768  # of the CUDA kernel

Pair = tuple[Tensor, Tensor]


def _fake(x: Tensor, taps: Tensor, taps_bias: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    batch, height, width, channels = x.shape
    outputs, tiles = weight.shape[0], ref.tile_count(height, width, channels)
    return x.new_empty((batch, height, width, outputs)), x.new_empty((batch, tiles, outputs), dtype=torch.float32)


def _load() -> Callable[..., Pair]:
    from lpkernels.triton.depthwise_linear import depthwise_linear

    return depthwise_linear


def _plain(compute: torch.dtype, x: Tensor, *args: Tensor) -> Pair:
    h, squares = ref.depthwise_linear_in(compute, x, *args)
    return h.to(x.dtype).contiguous(), squares


_OP = Op(
    "depthwise_linear(Tensor x, Tensor taps, Tensor taps_bias, Tensor weight, Tensor bias)"
    " -> (Tensor h, Tensor squares)",
    _fake,
    (
        native("depthwise_linear", "cuda", clusters=True, refuses=_convnext.cuda_refuses(MOST_CHANNELS)),
        triton_kernel("depthwise_linear", _load, refuses=_convnext.no_tensor_cores),
        Backend("torch", _conv.torch_why_not, lambda x, *args: _plain(x.dtype, x, *args)),
        reference(lambda *args: _plain(torch.float32, *args)),
    ),
)


def depthwise_linear(x: Tensor, taps: Tensor, taps_bias: Tensor, weight: Tensor, bias: Tensor) -> Pair:
    """Depthwise 7x7, layer norm, the widening linear layer and the exact GELU (ConvNeXt V2, arXiv 2301.00808)::

        v = conv(x, taps, groups = C, padding = 3) + taps_bias
        a = (v - mean_C v) / sqrt(var_C v + 1e-6)
        h = gelu(a W^T + bias)

    The norm's own weight and bias belong into the linear layer: ``W = W1 * norm_weight``, ``bias = b1 + W1 norm_bias``.
    Global response norm, which follows, needs the norm of each channel of h over an image: the sums of squares of each
    tile of pixels are a row of ``squares``, and ``grn_linear`` adds the rows up in order. There are no atomics: every
    run gives the same bits.

    Args:
        x: (B, H, W, C), channels-last, float16, bfloat16 or float32.
        taps: (7, 7, C), float32: ``conv.weight`` (C, 1, 7, 7) with its channels moved last.
        taps_bias: (C,), float32.
        weight: W, (N, C), the dtype of ``x``.
        bias: (N,), float32.

    Returns:
        h (B, H, W, N), the dtype of ``x``, and squares (B, R, N), float32. Row r is the sum over the pixels of tile r,
        tiles of 8 columns and ``lpkernels.ref.tile_height`` rows, numbered row by row.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient, or a tensor is a view that does not start at 16 bytes.
    """
    x = _convnext.activation("x", x)
    channels = x.shape[3]
    _conv.float32("taps", taps, x, (KERNEL, KERNEL, channels))
    _conv.float32("taps_bias", taps_bias, x, (channels,))
    _conv.weight("weight", weight, x, ("N", channels))
    _conv.float32("bias", bias, x, (weight.shape[0],))
    pair: Pair = _OP(x, taps, taps_bias, weight, bias)
    return pair
