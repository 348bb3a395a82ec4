"""depthwise_norm: the first half of a ConvNeXt block's body, its 7x7 depthwise convolution and layer norm."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lpkernels import ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Op, triton_kernel

KERNEL = 7


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.depthwise_norm import depthwise_norm

    return depthwise_norm


_OP = Op(
    "depthwise_norm(Tensor x, Tensor weight, Tensor bias) -> Tensor y",
    _fake,
    (triton_kernel("depthwise_norm", _load), *_convnext.plain(ref.depthwise_norm_in)),
)


def depthwise_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 7x7 convolution of each channel, padding 3, then layer norm over channels (ConvNeXt V2, arXiv 2301.00808)::

        v = conv(x, weight, groups = C) + bias
        y = (v - mean_C v) / sqrt(var_C v + 1e-6)

    The norm's own weight and bias belong into the linear layer that follows: ``W' = W * weight``, ``b' = b + W bias``.

    Args:
        x: (B, H, W, C), channels-last, float16, bfloat16 or float32.
        weight: (7, 7, C), the dtype of ``x``: ``conv.weight`` (C, 1, 7, 7) with its channels moved last.
        bias: (C,), float32.

    Returns:
        (B, H, W, C), the dtype of ``x``. Sums and statistics are float32.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    x = _convnext.activation("x", x)
    channels = x.shape[3]
    _conv.weight("weight", weight, x, (KERNEL, KERNEL, channels))
    _conv.float32("bias", bias, x, (channels,))
    y: Tensor = _OP(x, weight, bias)
    return y
