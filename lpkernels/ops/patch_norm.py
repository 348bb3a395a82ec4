"""patch_norm: the stem of ConvNeXt, from a picture's bytes to normalised features of its patches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Op, Signature, native, triton_kernel

TAPS = (4, 4, 3)  # of the CUDA kernel: patches, down and across, and colours
MOST_OUTPUTS = 96


def _fake(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    batch, height, width, _ = x.shape
    outputs, patch = weight.shape[:2]
    return weight.new_empty((batch, height // patch, width // patch, outputs))


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.patch_norm import patch_norm

    return patch_norm


def _cuda_refuses(signature: Signature) -> str | None:
    _, ((outputs, *taps), dtype), *_ = signature
    if dtype != torch.float16 or tuple(taps) != TAPS or outputs % _convnext.VECTOR or outputs > MOST_OUTPUTS:
        return (
            f"made for float16 weights of 4x4 patches in 3 colours, outputs in multiples of {_convnext.VECTOR}, "
            f"at most {MOST_OUTPUTS}; got {dtype}, {outputs} outputs of {tuple(taps)}"
        )
    return None


_OP = Op(
    "patch_norm(Tensor x, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias) -> Tensor y",
    _fake,
    (
        native("patch_norm", "cuda", clusters=True, refuses=_cuda_refuses),
        triton_kernel("patch_norm", _load, refuses=_convnext.no_tensor_cores),
        *_convnext.plain(ref.patch_norm_in, like=1),
    ),
)


def patch_norm(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """A convolution P x P with stride P and no padding, then layer norm over channels with its affine, eps 1e-6.

    Bytes count as value / 255, in one pass: no float picture is made of them. Rows and columns beyond the last whole
    patch are left out, as conv2d does.

    Args:
        x: (B, H, W, C) with any strides, uint8 in 0..255, or float16, bfloat16 or float32 taken as it is; H and W at
            least P. A picture (B, C, H, W) is passed as ``x.permute(0, 2, 3, 1)``, without a copy.
        weight: (N, P, P, C), float16, bfloat16 or float32.
        bias, norm_weight, norm_bias: (N,), float32.

    Returns:
        (B, H // P, W // P, N), the dtype of ``weight``. Statistics and sums are float32.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape does not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient, or a weight or vector is a view that does not start at 16 bytes.
    """
    _checks.is_tensor("x", x)
    _checks.is_tensor("weight", weight)
    _checks.shape("x", x, ("B", "H", "W", "C"))
    _checks.dtype("x", x, (torch.uint8, *_conv.DTYPES))
    _checks.shape("weight", weight, ("N", "P", "P", x.shape[3]))
    outputs, patch = weight.shape[:2]
    if weight.shape[2] != patch:
        raise ValueError(f"weight must have as many taps down as across, got {tuple(weight.shape)}")
    if min(x.shape[1:3]) < patch:
        raise ValueError(f"x must be at least {patch} pixels high and wide, got {tuple(x.shape)}")
    _checks.dtype("weight", weight, _conv.DTYPES)
    _checks.same_device("x", x, weight=weight)
    _conv.float32("bias", bias, x, (outputs,))
    _conv.float32("norm_weight", norm_weight, x, (outputs,))
    _conv.float32("norm_bias", norm_bias, x, (outputs,))
    y: Tensor = _OP(x, weight.contiguous(), bias, norm_weight, norm_bias)
    return y
