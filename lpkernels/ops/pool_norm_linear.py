"""pool_norm_linear: the end of ConvNeXt, from the last stage's pixels to the numbers of all heads side by side."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Backend, Op, native, reference, triton_kernel

MOST_CHANNELS = 768  # of the CUDA kernel


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.float32)


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.pool_norm_linear import pool_norm_linear

    return pool_norm_linear


_OP = Op(
    "pool_norm_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor y",
    _fake,
    (
        native("pool_norm_linear", "cuda", clusters=True, refuses=_convnext.cuda_refuses(MOST_CHANNELS, 1, 1)),
        triton_kernel("pool_norm_linear", _load),
        Backend("torch", _conv.torch_why_not, ref.pool_norm_linear),
        reference(ref.pool_norm_linear),
    ),
)


def pool_norm_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``y = layer_norm(mean_HW x) W^T + b`` in float32; eps 1e-6, the norm's own weight and bias folded into W and b.

    Args:
        x: (B, H, W, C), channels-last, float16, bfloat16 or float32.
        weight: (N, C), float32.
        bias: (N,), float32.

    Returns:
        (B, N), float32.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient, or a tensor is a view that does not start at 16 bytes.
    """
    x = _convnext.activation("x", x)
    _checks.is_tensor("weight", weight)
    _conv.float32("weight", weight, x, ("N", x.shape[3]))
    _conv.float32("bias", bias, x, (weight.shape[0],))
    y: Tensor = _OP(x, weight, bias)
    return y
