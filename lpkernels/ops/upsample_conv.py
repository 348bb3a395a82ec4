"""upsample_conv: nearest upsampling, then a convolution, as sub-pixel convolutions on the small grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import _checks, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference, triton_kernel
from lpkernels.rewrites import CLASSES, upsample_conv_phases

SCALES = {4: 2, 9: 4}  # number of phases: scale


def pack_upsample_weight(weight: Tensor, scale: int, multiple: int = _conv.WEIGHT_MULTIPLE) -> Tensor:
    """A conv weight (O, C, [3,] 3, 3) as ``upsample_conv`` takes it: (P, O, [3,] 2, 2, C'), contiguous.

    Summing taps (``lpkernels.rewrites.upsample_conv_phases``) leaves P = 4 kernels for scale 2, P = 9 for scale 4:
    kernel row phase * n + column phase, n along an axis. A phase's two taps lie at the small rows (-1, 0) or (0, 1);
    that of scale 4's inner rows has one tap and stores a zero before it. C' is C padded with zeros to a multiple of
    ``multiple``. Pack in float32, cast afterwards: the sums are exact to the dtype of ``weight``.

    Raises:
        ValueError: not the weight of a 2D or 3D convolution of three taps, or another scale than 2 or 4.
    """
    _checks.is_tensor("weight", weight)
    _checks.shape("weight", weight, ("O", "C", 3, 3, 3) if weight.dim() == 5 else ("O", "C", 3, 3))
    if scale not in SCALES.values():
        raise ValueError(f"scale must be 2 or 4, got {scale}")
    upsampled = (False, True, True)[5 - weight.dim() :]
    kernels = [_two_taps(phase.weight) for phase in upsample_conv_phases(weight, scale, upsampled)]
    return _conv.pad_channels(torch.stack([_conv.pixels(kernel) for kernel in kernels]), multiple)


def _two_taps(kernel: Tensor) -> Tensor:
    height, width = kernel.shape[-2:]
    return F.pad(kernel, (2 - width, 0, 2 - height, 0))


def _fake(*_: Any) -> None:
    return None


def _load() -> Callable[..., None]:
    from lpkernels.triton.upsample_conv import upsample_conv

    return upsample_conv


def _written(compute: Callable[[Tensor], torch.dtype]) -> Callable[..., None]:
    """The reference's arithmetic in a dtype, written into ``out``."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, negative_slope: float, out: Tensor) -> None:
        out.copy_(ref.upsample_conv_in(compute(x), x, weight, bias, negative_slope, _stores_classes(x, out)))

    return run


def _stores_classes(x: Tensor, out: Tensor) -> bool:
    return out.shape[-3] == CLASSES * x.shape[-3]


def _triton_refuses(signature: Signature) -> str | None:
    (x_shape, _), *_, (out_shape, _) = signature
    stores_classes = len(out_shape) == 4 and out_shape[1] == CLASSES * x_shape[1]
    return _conv.CLASSES_REFUSED if stores_classes else None


_OP = Op(
    "upsample_conv(Tensor x, Tensor weight, Tensor bias, float negative_slope, Tensor(a!) out) -> ()",
    _fake,
    (
        native("upsample_conv", "cuda", hopper=True, refuses=_conv.hopper_refuses),
        triton_kernel("upsample_conv", _load, refuses=_triton_refuses),
        Backend("torch", _conv.torch_why_not, _written(lambda x: x.dtype)),
        reference(_written(lambda x: torch.float32)),
    ),
)


def upsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    negative_slope: float = 1.0,
    out: Tensor | None = None,
    classes: bool = False,
) -> Tensor:
    """Nearest upsampling of h and w by s, a convolution of three taps an axis with padding 1, bias, activation::

        y = act(conv(upsample(x), weight) + bias),  act(v) = v if v > 0 else negative_slope * v

    A large pixel sees at most 2 x 2 small ones, so it is a 2 x 2 convolution of the small grid with taps summed; which
    one depends on the pixel's phase alone. Scale 2 takes 4 products a channel instead of 9, scale 4 at most 4 as well.

    Args:
        x: (B, H, W, C) or (B, D, H, W, C), channels-last (slices of a wider buffer too), float16, bfloat16 or float32.
        weight: (P, O, [3,] 2, 2, C), the dtype of ``x``: ``pack_upsample_weight``; P = 4 means s = 2, P = 9 s = 4.
        bias: (O,), float32.
        negative_slope: 1 for no activation, 0 for ReLU.
        out: where to write y, channels-last, over none of the inputs; None: a new tensor.
        classes: with scale 4, 2D: y takes 3 values per small pixel and axis; store those alone, (B, 3 H, 3 W, O), for
            ``conv_act`` and ``spade_conv`` to read with fewer taps (``lpkernels.rewrites.class_conv_phases``).

    Returns:
        y, (B, [D,] s H, s W, O), or its classes, which is ``out``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``out`` overlaps an input.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x)
    *outer, height, width, channels = x.shape
    taps = (3, 2, 2) if x.dim() == 5 else (2, 2)
    _conv.weight("weight", weight, x, ("P", "O", *taps, channels))
    phases, outputs = weight.shape[:2]
    if phases not in SCALES:
        raise ValueError(f"weight must have 4 phases (scale 2) or 9 (scale 4), got {tuple(weight.shape)}")
    scale = SCALES[phases]
    _conv.float32("bias", bias, x, (outputs,))
    if classes and (scale != 4 or x.dim() == 5):
        raise ValueError(f"classes needs pictures and scale 4 (9 phases), got {tuple(x.shape)} and {phases} phases")
    larger = CLASSES if classes else scale
    shape = (*outer, larger * height, larger * width, outputs)
    out = _conv.output(out, shape, x, x=x, weight=weight, bias=bias)
    _OP(x, weight, bias, float(negative_slope), out)
    return out
