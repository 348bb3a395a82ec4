"""norm_downsample: the step between two stages of ConvNeXt, layer norm and a convolution that halves the picture."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lpkernels import ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Op, native, triton_kernel

MOST_CHANNELS = 384  # of the CUDA kernel


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, height, width, _ = x.shape
    return x.new_empty((batch, height // 2, width // 2, weight.shape[0]))


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.norm_downsample import norm_downsample

    return norm_downsample


_OP = Op(
    "norm_downsample(Tensor x, Tensor weight, Tensor bias) -> Tensor y",
    _fake,
    (
        native("norm_downsample", "cuda", clusters=True, refuses=_convnext.cuda_refuses(MOST_CHANNELS, weight=1)),
        triton_kernel("norm_downsample", _load, refuses=_convnext.no_tensor_cores),
        *_convnext.plain(ref.norm_downsample_in),
    ),
)


def norm_downsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm over channels, eps 1e-6 and no affine, then a convolution 2x2 with stride 2 and no padding.

    The norm's own weight and bias belong into the convolution: ``weight * norm_weight`` along the inputs, and the sum
    over taps of ``weight @ norm_bias`` in its bias. A last odd row or column is left out, as conv2d does.

    Args:
        x: (B, H, W, C), channels-last, float16, bfloat16 or float32; H and W at least 2.
        weight: (N, 2, 2, C), the dtype of ``x``.
        bias: (N,), float32.

    Returns:
        (B, H // 2, W // 2, N), the dtype of ``x``. Statistics and sums are float32.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient, or a tensor is a view that does not start at 16 bytes.
    """
    x = _convnext.activation("x", x)
    if min(x.shape[1:3]) < 2:
        raise ValueError(f"x must be at least 2 pixels high and wide, got {tuple(x.shape)}")
    _conv.weight("weight", weight, x, ("N", 2, 2, x.shape[3]))
    _conv.float32("bias", bias, x, (weight.shape[0],))
    y: Tensor = _OP(x, weight, bias)
    return y
