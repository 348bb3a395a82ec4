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
from lpkernels.rewrites import CLASSES, upsample_conv_phases, upsample_conv_products

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


def pack_upsample_products(weight: Tensor, multiple: int = _conv.WEIGHT_MULTIPLE) -> Tensor:
    """A conv weight (O, C, [3,] 3, 3) as products that all phases share, of either scale: (3, 3, O, [3,] C').

    ``lpkernels.rewrites.upsample_conv_products``; C' and casting as for ``pack_upsample_weight``. Nine products a small
    pixel and channel instead of 16 or 25, for the kernel that takes them: ``shares_products``.

    Raises:
        ValueError: not the weight of a 2D or 3D convolution of three taps.
    """
    _checks.is_tensor("weight", weight)
    _checks.shape("weight", weight, ("O", "C", 3, 3, 3) if weight.dim() == 5 else ("O", "C", 3, 3))
    return _conv.pad_channels(upsample_conv_products(weight).movedim(3, -1), multiple)


def shares_products(device_type: str, dtype: torch.dtype, channels: int, outputs: int) -> bool:
    """Whether a weight of shared products is the one to pack: its kernel runs on that device, for these channels."""
    shape = (3, 3, outputs, channels)
    signature = (((1, 1, 1, channels), dtype), (shape, dtype), ((outputs,), torch.float32), ((1, 2, 2, outputs), dtype))
    return _OP.choose(device_type, signature).backend == "cuda"


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
        classes = _stores_classes(x, out)
        scale = 4 if classes else out.shape[-3] // x.shape[-3]
        out.copy_(ref.upsample_conv_in(compute(x), x, weight, bias, negative_slope, classes, scale))

    return run


def _stores_classes(x: Tensor, out: Tensor) -> bool:
    return out.shape[-3] == CLASSES * x.shape[-3]


def _hopper_refuses(signature: Signature) -> str | None:
    (x_shape, _), (weight_shape, _), *_ = signature
    if len(weight_shape) != len(x_shape):
        return "made for a weight of shared products (pack_upsample_products), got one of phases"
    return _conv.hopper_refuses(signature)


def _triton_refuses(signature: Signature) -> str | None:
    (x_shape, _), (weight_shape, _), *_, (out_shape, _) = signature
    if len(weight_shape) == len(x_shape):
        return "made for a weight of phases (pack_upsample_weight), got one of shared products"
    stores_classes = len(out_shape) == 4 and out_shape[1] == CLASSES * x_shape[1]
    return _conv.CLASSES_REFUSED if stores_classes else None


_OP = Op(
    "upsample_conv(Tensor x, Tensor weight, Tensor bias, float negative_slope, Tensor(a!) out) -> ()",
    _fake,
    (
        native("upsample_conv", "cuda", hopper=True, refuses=_hopper_refuses),
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
    scale: int | None = None,
) -> Tensor:
    """Nearest upsampling of h and w by s, a convolution of three taps an axis with padding 1, bias, activation::

        y = act(conv(upsample(x), weight) + bias),  act(v) = v if v > 0 else negative_slope * v

    A large pixel sees at most 2 x 2 small ones, so it is a 2 x 2 convolution of the small grid with taps summed; which
    one depends on the pixel's phase alone. Scale 2 takes 4 products a channel instead of 9, scale 4 at most 4 as well.
    Or the phases share products of differences of neighbours, 9 for all of them; in float16 those must stay finite.

    Args:
        x: (B, H, W, C) or (B, D, H, W, C), channels-last (slices of a wider buffer too), float16, bfloat16 or float32.
        weight: (P, O, [3,] 2, 2, C), the dtype of ``x``: ``pack_upsample_weight``; P = 4 means s = 2, P = 9 s = 4.
            Or shared products, (3, 3, O, [3,] C): ``pack_upsample_products``.
        bias: (O,), float32.
        negative_slope: 1 for no activation, 0 for ReLU.
        out: where to write y, channels-last, over none of the inputs; None: a new tensor.
        classes: with scale 4, 2D: y takes 3 values per small pixel and axis; store those alone, (B, 3 H, 3 W, O), for
            ``conv_act`` and ``spade_conv`` to read with fewer taps (``lpkernels.rewrites.class_conv_phases``).
        scale: s, 2 or 4; needed with shared products, which do not tell.

    Returns:
        y, (B, [D,] s H, s W, O), or its classes, which is ``out``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``out`` overlaps an input.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x)
    *outer, height, width, _ = x.shape
    outputs, scale = _outputs_and_scale(x, weight, scale)
    _conv.float32("bias", bias, x, (outputs,))
    if classes and (scale != 4 or x.dim() == 5):
        raise ValueError(f"classes needs pictures and scale 4, got {tuple(x.shape)} and scale {scale}")
    larger = CLASSES if classes else scale
    shape = (*outer, larger * height, larger * width, outputs)
    out = _conv.output(out, shape, x, x=x, weight=weight, bias=bias)
    _OP(x, weight, bias, float(negative_slope), out)
    return out


def _outputs_and_scale(x: Tensor, weight: Tensor, scale: int | None) -> tuple[int, int]:
    """O and s of a weight of either form, checked."""
    depth = (3,) if x.dim() == 5 else ()
    if _checks.is_tensor("weight", weight).dim() == x.dim():
        _conv.weight("weight", weight, x, (3, 3, "O", *depth, x.shape[-1]))
        if scale is None or scale not in SCALES.values():
            raise ValueError(f"scale must be 2 or 4 with a weight of shared products, got {scale}")
        return weight.shape[2], scale
    _conv.weight("weight", weight, x, ("P", "O", *depth, 2, 2, x.shape[-1]))
    phases, outputs = weight.shape[:2]
    if phases not in SCALES:
        raise ValueError(f"weight must have 4 phases (scale 2) or 9 (scale 4), got {tuple(weight.shape)}")
    if scale not in (None, SCALES[phases]):
        raise ValueError(f"scale must be {SCALES[phases]} or None with {phases} phases, got {scale}")
    return outputs, SCALES[phases]
