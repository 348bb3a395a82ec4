"""conv_img: the decoder's last convolution, pixel shuffle and sigmoid, stored as the picture that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference, triton_kernel

TAPS = 3
COLOURS = 3


def _fake(x: Tensor, weight: Tensor, bias: Tensor, upscale: int, as_uint8: bool) -> Tensor:
    batch, height, width = x.shape[0], upscale * x.shape[1], upscale * x.shape[2]
    if as_uint8:
        return x.new_empty((batch, height, width, COLOURS), dtype=torch.uint8)
    return x.new_empty((batch, COLOURS, height, width), dtype=torch.float32)


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.conv_img import conv_img

    return conv_img


def _torch(x: Tensor, weight: Tensor, bias: Tensor, upscale: int, as_uint8: bool) -> Tensor:
    return ref.conv_img_in(x.dtype, x, weight, bias, upscale, as_uint8)


def _hopper_refuses(signature: Signature) -> str | None:
    ((*_, channels), dtype), ((outputs, *_), _), *_ = signature
    if dtype != torch.float16 or channels % 64 or outputs not in (3, 12):
        return (
            f"made for float16, channels in multiples of 64 and an upscale of 1 or 2 (3 or 12 outputs); "
            f"got {dtype}, {channels}, {outputs} outputs"
        )
    return None


_OP = Op(
    "conv_img(Tensor x, Tensor weight, Tensor bias, int upscale, bool as_uint8) -> Tensor image",
    _fake,
    (
        native("conv_img", "cuda", hopper=True, refuses=_hopper_refuses),
        triton_kernel("conv_img", _load),
        Backend("torch", _conv.torch_why_not, _torch),
        reference(ref.conv_img),
    ),
)


def conv_img(x: Tensor, weight: Tensor, bias: Tensor, upscale: int = 2, as_uint8: bool = True) -> Tensor:
    """The picture: ``sigmoid(pixel_shuffle(conv3x3(x, weight) + bias, upscale))``, the end of the decoder G.

    Args:
        x: (B, H, W, C), already activated (LeakyReLU 0.2), channels-last (a slice of a wider buffer too), float16,
            bfloat16 or float32.
        weight: (3 * upscale**2, 3, 3, C), the dtype of ``x``: ``pack_conv_weight`` of ``conv_img``'s.
        bias: (3 * upscale**2,), float32.
        upscale: factor u of the pixel shuffle; 1 for none.
        as_uint8: the picture in 8 bits, or in floating point.

    Returns:
        (B, uH, uW, 3), uint8, times 255 and truncated as the original does; or (B, 3, uH, uW), float32 in 0..1.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``upscale`` is below 1.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x, 4)
    if upscale < 1:
        raise ValueError(f"upscale must be at least 1, got {upscale}")
    outputs = COLOURS * upscale**2
    _conv.weight("weight", weight, x, (outputs, TAPS, TAPS, x.shape[-1]))
    _conv.float32("bias", bias, x, (outputs,))
    image: Tensor = _OP(x, weight, bias, int(upscale), bool(as_uint8))
    return image
