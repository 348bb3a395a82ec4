"""conv_act: a convolution with all that follows it up to the next one: bias, residual, activation, gain, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpkernels import _checks, _winograd, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference, triton_kernel

TILE = 128  # pixels, and outputs, of a Hopper kernel's tile
WINOGRAD_TILE = 256  # pixels: 4 rows of 64
MOST_PARTS = 32


def pack_conv_weight(weight: Tensor, multiple: int = _conv.WEIGHT_MULTIPLE) -> Tensor:
    """A conv weight (O, C, taps...) as ``conv_act`` and ``conv_pool`` take it: (O, taps..., C'), contiguous.

    C' is C padded with zeros to a multiple of ``multiple``: as many channels as the activations' buffer has.

    Raises:
        ValueError: not the weight of a 2D or 3D convolution.
    """
    _checks.is_tensor("weight", weight)
    taps = ("kd", "kh", "kw") if weight.dim() == 5 else ("kh", "kw")
    _checks.shape("weight", weight, ("O", "C", *taps))
    return _conv.pad_channels(_conv.pixels(weight), multiple)


def stat_parts(x: Tensor, outputs: int, winograd: bool = False) -> int | None:
    """In how many parts ``conv_act`` best leaves the statistics of its answer to ``x``; None: of the whole image.

    The blocks of the Hopper kernel have those of their own tiles, which are others for a weight of
    ``pack_winograd_weight`` (``winograd``). Where these are few, ``spade_conv`` adds them up while it waits for its
    first pixels, which saves the kernel that would do it in between.
    """
    if x.dtype != torch.float16 or _OP.backends["cuda"].why_not(x.device.type) is not None:
        return None
    return _tiles(tuple(x.shape), outputs, winograd)


def _tiles(x_shape: tuple[int, ...], outputs: int, winograd: bool) -> int | None:
    """Tiles of a picture, where the Hopper kernel's have all their pixels and are few; else None."""
    if len(x_shape) != 4 or outputs % TILE or x_shape[-1] % 64:
        return None
    height, width = x_shape[1:3]
    if winograd and (height % 4 or width % 64):
        return None
    tile = WINOGRAD_TILE if winograd else TILE
    powers = height & (height - 1) == 0 and width & (width - 1) == 0
    return height * width // tile if powers and 2 * tile <= height * width <= MOST_PARTS * tile else None


def _fake(*_: Any) -> None:
    return None


def _load() -> Callable[..., None]:
    from lpkernels.triton.conv_act import conv_act

    return conv_act


def _written(compute: Callable[[Tensor], torch.dtype]) -> Callable[..., None]:
    """The reference's arithmetic in a dtype, written into ``out`` and ``stats``."""

    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        negative_slope: float,
        residual: Tensor | None,
        gain: Tensor | None,
        out: Tensor,
        stats: Tensor | None,
    ) -> None:
        y = ref.conv_act_in(compute(x), x, weight, bias, negative_slope, residual, gain)
        out.copy_(y)
        if stats is not None:
            stats.copy_(ref.stats_like(stats, y.float()))

    return run


def _hopper_refuses(signature: Signature) -> str | None:
    (x_shape, dtype), (weight_shape, _), ((outputs,), _), *_ = signature
    winograd = _winograd.is_tiles(weight_shape)
    last, last_dtype = signature[-1]
    if last_dtype == torch.float32 and len(last) == 4 and last[1] != (tiles := _tiles(x_shape, outputs, winograd)):
        return f"leaves statistics in as many parts as it has tiles, here {tiles}; got {last[1]}"
    if winograd:
        return _winograd_refused(x_shape, dtype, outputs, _winograd.is_together(weight_shape))
    if (x_shape[-1], outputs, dtype) == (144, 144, torch.float16):
        return None  # the hourglass's last convolution has a tile of its own
    return _conv.hopper_refuses(signature)


def _winograd_refused(x_shape: tuple[int, ...], dtype: torch.dtype, outputs: int, together: bool) -> str | None:
    channels = x_shape[-1]
    hourglass = (len(x_shape), channels, outputs) == (5, 144, 144) and not together
    if dtype == torch.float16 and (hourglass or (channels % 64 == 0 and outputs % (64 if together else 128) == 0)):
        return None
    return (
        "takes a weight of pack_winograd_weight in float16, for channels in multiples of 64 and outputs of 64 "
        "(together) or 128 (kind by kind), or kind by kind for 144 of both in a volume; "
        f"got {dtype}, {channels}, {outputs}, {'together' if together else 'kind by kind'}"
    )


_OP = Op(
    "conv_act(Tensor x, Tensor weight, Tensor bias, float negative_slope, Tensor? residual, Tensor? gain,"
    " Tensor(a!) out, Tensor(b!)? stats) -> ()",
    _fake,
    (
        native("conv_act", "cuda", hopper=True, refuses=_hopper_refuses),
        triton_kernel("conv_act", _load, refuses=_conv.triton_refuses),
        Backend("torch", _conv.torch_why_not, _written(lambda x: x.dtype), _conv.taps_only),
        reference(_written(lambda x: torch.float32)),
    ),
)


def conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    negative_slope: float = 1.0,
    residual: Tensor | None = None,
    gain: Tensor | None = None,
    out: Tensor | None = None,
    stats: Tensor | None = None,
) -> Tensor:
    """A convolution of stride 1 that keeps the size, and what the networks do to its answer::

        y     = act(conv(x, weight, padding = taps // 2) + bias + residual) * gain
        act(v) = v if v > 0 else negative_slope * v

    Every convolution of the decoder's residual blocks and of the warping module that neither pools nor follows an
    upsampling is this op. It can write a slice of a concatenated buffer, add a shortcut that is still to be enlarged,
    multiply by the occlusion map, and leave behind what the next instance norm asks of its answer.

    Args:
        x: (B, H, W, C) or (B, D, H, W, C), channels-last (slices of a wider buffer too), float16, bfloat16 or float32;
            or the classes (B, 3h, 3w, C) of a picture H, W = 4h, 4w (``upsample_conv``).
        weight: (O, taps..., C), 1 or 3 taps an axis, the dtype of ``x``: ``pack_conv_weight``; for classes
            (16 O, 3, 3, C), ``pack_class_weight`` of it. Or ``pack_winograd_weight`` of it, in either arrangement:
            sums of two neighbouring rows of ``x`` must then stay finite in float16.
        bias: (O,), float32.
        negative_slope: 1 for no activation, 0 for ReLU.
        residual: the shape of the answer, or half its H and W (2D only: it is enlarged, nearest); the dtype of ``x``.
        gain: (B, H, W), float32, for all channels of a pixel; 2D only.
        out: where to write y, channels-last, over none of the inputs; None: a new tensor.
        stats: (B, O, 2), float32, receives mean and 1 / sqrt(var + 1e-5) of every channel of y over all pixels (the
            variance is biased), as InstanceNorm has them; or (B, P, O, 2), mean and var over each of P equal parts of
            the pixels, for ``spade_conv``: which pixels are a part is the backend's to choose, and P ``stat_parts``'s.

    Returns:
        y, (B, [D,] H, W, O), which is ``out``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``out`` or ``stats`` overlaps an input.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x)
    taps = [f"k{axis.lower()}" for axis in _conv.spatial_dims(x)]
    winograd = _conv.taps_or_winograd("weight", weight, x, ("O",), taps, x.shape[-1], together=(False, True))
    if not winograd and any(size not in (1, 3) for size in weight.shape[1:-1]):
        raise ValueError(f"weight must have 1 or 3 taps an axis, got {tuple(weight.shape)}")
    classes = not winograd and _conv.reads_classes("x", x, weight, bias)
    outputs = bias.shape[0] if classes else weight.shape[0]
    _conv.float32("bias", bias, x, (outputs,))
    grid = [_conv.of_classes(size) for size in x.shape[1:3]] if classes else x.shape[1:-1]
    shape = (x.shape[0], *grid, outputs)
    if classes and stats is not None:
        raise ValueError("stats are not made from a grid of classes: leave them out")
    if residual is not None:
        _check_residual(residual, shape, x)
    if gain is not None:
        if x.dim() == 5:
            raise ValueError(f"gain goes with pictures (B, H, W, C), got x of shape {tuple(x.shape)}")
        _conv.float32("gain", gain, x, shape[:-1])
    inputs = {"x": x, "weight": weight, "bias": bias, "residual": residual, "gain": gain}
    out = _conv.output(out, shape, x, **inputs)
    if stats is not None:
        _conv.statistics(stats, x, outputs)
        if stats.dim() == 4 and math.prod(grid) % stats.shape[1]:
            raise ValueError(f"stats must have parts of equal size, got {stats.shape[1]} of {math.prod(grid)} pixels")
        _conv.no_overlap("stats", stats, **inputs, out=out)
    _OP(x, weight, bias, float(negative_slope), residual, gain, out, stats)
    return out


def _check_residual(residual: object, shape: tuple[int, ...], x: Tensor) -> None:
    checked = _checks.is_tensor("residual", residual)
    expected = shape
    batch, height, width, outputs = shape[0], shape[-3], shape[-2], shape[-1]
    if len(shape) == 4 and tuple(checked.shape) == (batch, height // 2, width // 2, outputs):
        if height % 2 or width % 2:
            raise ValueError(f"residual of half the size needs even H and W, got {height} and {width}")
        expected = tuple(checked.shape)
    _conv.channels_last("residual", checked, expected)
    _checks.same_dtype("x", x, residual=checked)
    _checks.same_device("x", x, residual=checked)
