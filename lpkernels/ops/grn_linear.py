"""grn_linear: the second half of a ConvNeXt V2 block's body: global response norm, narrowing linear layer, residual."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Op, native, triton_kernel

MOST_CHANNELS = 3072  # of the CUDA kernel


def _fake(x: Tensor, squares: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return residual.new_empty(residual.shape)


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.grn_linear import grn_linear

    return grn_linear


_OP = Op(
    "grn_linear(Tensor x, Tensor squares, Tensor gamma, Tensor weight, Tensor bias, Tensor residual) -> Tensor y",
    _fake,
    (
        native("grn_linear", "cuda", clusters=True, refuses=_convnext.cuda_refuses(MOST_CHANNELS)),
        triton_kernel("grn_linear", _load, refuses=_convnext.no_tensor_cores),
        *_convnext.plain(ref.grn_linear_in),
    ),
)


def grn_linear(x: Tensor, squares: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """Global response norm (ConvNeXt V2, arXiv 2301.00808, section 3.2) as a factor per channel, linear, residual::

        n = |x|_HW / (mean_K |x|_HW + 1e-6)
        y = (x * (1 + gamma * n)) W^T + bias + residual

    The norm's beta belongs into the bias: ``bias = b + W beta``.

    Args:
        x: (B, H, W, K), h of ``depthwise_linear``, channels-last, float16, bfloat16 or float32.
        squares: (B, R, K), float32, as ``depthwise_linear`` leaves them: rows that add up to x squared over an image.
        gamma: (K,), float32.
        weight: (N, K), the dtype of ``x``.
        bias: (N,), float32.
        residual: (B, H, W, N), the dtype of ``x``.

    Returns:
        (B, H, W, N), the dtype of ``x``. Norms, their mean and sums are float32.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient, or a tensor is a view that does not start at 16 bytes.
    """
    x = _convnext.activation("x", x)
    batch, height, width, channels = x.shape
    _conv.float32("squares", squares, x, (batch, "R", channels))
    _conv.float32("gamma", gamma, x, (channels,))
    _conv.weight("weight", weight, x, ("N", channels))
    _conv.float32("bias", bias, x, (weight.shape[0],))
    residual = _convnext.activation("residual", residual)
    _checks.shape("residual", residual, (batch, height, width, weight.shape[0]))
    _checks.same_dtype("x", x, residual=residual)
    _checks.same_device("x", x, residual=residual)
    y: Tensor = _OP(x, squares, gamma, weight, bias, residual)
    return y
