"""Argument checks of the convolution ops: channels-last activations, slices of wider buffers, outputs, weights.

An activation is (B, H, W, C) or (B, D, H, W, C) with channels next to each other and dense pixels: strides
(..., W * P, P, 1). The pixel stride P exceeds C where the tensor is a slice of channels of a wider buffer
(``lpkernels._channels_last``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lpkernels import _checks, _winograd, rewrites
from lpkernels._channels_last import pixel_stride as pixel_stride
from lpkernels._channels_last import pixels as pixels
from lpkernels._channels_last import planes as planes
from lpkernels.ops._op import Signature

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CLASSES_REFUSED = "grids of classes are for the Hopper kernels, and for PyTorch to check them"
WINOGRAD_REFUSED = "made for a weight of taps, got one of pack_winograd_weight"
WEIGHT_MULTIPLE = 8  # channels of a packed weight: 16 bytes of halves, what tensor cores' loads want


def activation(name: str, tensor: object, rank: int | None = None) -> Tensor:
    """Check a channels-last activation of any size, of ``rank`` dimensions (None: 4 or 5); returns it.

    Raises:
        TypeError: no tensor, or not float16, bfloat16 or float32.
        ValueError: another number of dimensions, an empty one, or strides that are not channels-last.
    """
    checked = _checks.is_tensor(name, tensor)
    dims = ("B", "D", "H", "W", "C") if (rank or checked.dim()) == 5 else ("B", "H", "W", "C")
    channels_last(name, checked, dims)
    _checks.dtype(name, checked, DTYPES)
    return checked


def channels_last(name: str, tensor: Tensor, dims: Sequence[int | str]) -> int:
    """Check shape (as ``_checks.shape``) and channels-last strides of ``tensor``; returns its pixel stride P.

    Raises ValueError that names the shape and strides that came.
    """
    _checks.shape(name, tensor, dims)
    stride = pixel_stride(tensor)
    if stride is None:
        raise ValueError(
            f"{name} must be channels-last with dense pixels (strides (..., W * P, P, 1), P at least C; a slice of "
            f"channels is one), got shape {tuple(tensor.shape)} with strides {tuple(tensor.stride())}"
        )
    return stride


def like_x(name: str, tensor: object, x: Tensor, dims: Sequence[int | str]) -> None:
    """Check a channels-last activation of shape ``dims`` (as ``_checks.shape``) against ``x``: dtype, device."""
    checked = _checks.is_tensor(name, tensor)
    channels_last(name, checked, dims)
    _checks.same_dtype("x", x, **{name: checked})
    _checks.same_device("x", x, **{name: checked})


def weight(name: str, tensor: object, like: Tensor, dims: Sequence[int | str]) -> Tensor:
    """Check a packed weight against the activation ``like``: shape, dtype, device, contiguous; returns it."""
    checked = _checks.is_tensor(name, tensor)
    _checks.shape(name, checked, dims)
    _checks.same_dtype("x", like, **{name: checked})
    _checks.same_device("x", like, **{name: checked})
    _contiguous(name, checked)
    return checked


def taps_or_winograd(
    name: str,
    tensor: object,
    like: Tensor,
    rows: Sequence[int | str],
    taps: Sequence[int | str],
    channels: int,
    together: Sequence[bool],
) -> bool:
    """Check ``tensor`` as ``weight`` does: (*``rows``, *``taps``, channels), or the tiles that are made of such a one.

    ``rows`` are its outputs, perhaps behind steps; ``together`` the arrangements that the op takes. Returns whether it
    has tiles (``pack_winograd_weight``).

    Raises:
        ValueError: it has none of these shapes.
    """
    checked, dims = _checks.is_tensor(name, tensor), (*rows, *taps, channels)
    stacked = len(rows) - 1
    if not _winograd.is_tiles(checked.shape[stacked:]) or channels % _winograd.SLICE:
        weight(name, checked, like, dims)
        return False
    depth = _winograd.TAPS if len(taps) == 3 else 1
    made = [_winograd.row(channels, depth, arrangement) for arrangement in together]
    found = tuple(checked.shape[stacked + 1 :])
    if found not in made:
        taken = " or ".join(_shown((*rows, *row)) for row in made)
        raise ValueError(
            f"{name} must have shape {_shown(dims)} or, of pack_winograd_weight, {taken}, got {tuple(checked.shape)}"
        )
    weight(name, checked, like, (*rows, *found))
    return True


def forms_differ(first: Tensor, spade: Tensor) -> ValueError:
    """The error of two weights of which one alone is ``pack_winograd_weight``'s."""
    return ValueError(
        "weight and spade_weight must both have taps or both be of pack_winograd_weight, "
        f"got {tuple(first.shape)} and {tuple(spade.shape)}"
    )


def float32(name: str, tensor: object, like: Tensor, dims: Sequence[int | str]) -> Tensor:
    """Check a contiguous float32 tensor on the device of ``like`` (a bias, statistics, a gain); returns it."""
    checked = _checks.is_tensor(name, tensor)
    _checks.shape(name, checked, dims)
    _checks.dtype(name, checked, (torch.float32,))
    _checks.same_device("x", like, **{name: checked})
    _contiguous(name, checked)
    return checked


def statistics(stats: object, x: Tensor, channels: int) -> Tensor:
    """Check statistics of a picture's channels, (B, C, 2), or in parts (B, P, C, 2); returns them."""
    in_parts = _checks.is_tensor("stats", stats).dim() == 4
    checked = float32("stats", stats, x, (x.shape[0], *(("P",) if in_parts else ()), channels, 2))
    if in_parts and checked.shape[1] < 1:
        raise ValueError(f"stats must have at least one part, got {tuple(checked.shape)}")
    return checked


def output(out: object | None, shape: Sequence[int], like: Tensor, **inputs: Tensor | None) -> Tensor:
    """``out`` checked, or a new contiguous tensor: ``shape``, dtype and device of ``like``, over none of ``inputs``."""
    if out is None:
        return like.new_empty(tuple(shape))
    checked = _checks.is_tensor("out", out)
    channels_last("out", checked, tuple(shape))
    _checks.same_dtype("x", like, out=checked)
    _checks.same_device("x", like, out=checked)
    no_overlap("out", checked, **inputs)
    return checked


def no_overlap(name: str, written: Tensor, **inputs: Tensor | None) -> None:
    """Raise ValueError if ``written`` shares memory with an input; slices of one buffer's other channels do not.

    While a graph is traced tensors have no memory to compare: nothing is checked there.
    """
    if torch.compiler.is_compiling():
        return
    for other, tensor in inputs.items():
        if tensor is not None and _overlap(written, tensor):
            raise ValueError(
                f"{name} must not overlap {other}: the op reads {other} after it has begun to write {name}"
            )


def pack_class_weight(weight: Tensor) -> Tensor:
    """A packed weight (O, 3, 3, C) for an image given as its classes: (16 O, 3, 3, C), phase by phase.

    Pack in float32 or float64, cast afterwards: taps are summed (``lpkernels.rewrites.class_conv_phases``).

    Raises:
        ValueError: not the packed weight of a 3x3 convolution.
    """
    _checks.shape("weight", _checks.is_tensor("weight", weight), ("O", 3, 3, "C"))
    return pixels(rewrites.class_conv_phases(planes(weight)).flatten(0, 1)).contiguous()


def reads_classes(name: str, x: Tensor, weight: Tensor, bias: object) -> bool:
    """Whether ``weight`` has the 16 kernels for each bias that read classes; then ``x`` must be a grid of them.

    Raises:
        ValueError: ``x`` is no picture whose H and W are multiples of 3.
    """
    outputs = _checks.is_tensor("bias", bias).shape[:1]
    if tuple(weight.shape[:1]) != tuple(len(rewrites.CLASS_OF_ROW) ** 2 * size for size in outputs):
        return False
    if x.dim() != 4 or x.shape[1] % rewrites.CLASSES or x.shape[2] % rewrites.CLASSES:
        raise ValueError(
            f"{name} must be a grid of classes (B, 3h, 3w, C) for a weight of 16 phases, got {tuple(x.shape)}"
        )
    return True


def of_classes(size: int) -> int:
    """Height or width of the image that a grid of classes stands for."""
    return size // rewrites.CLASSES * len(rewrites.CLASS_OF_ROW)


def same_or_half(name: str, x: Tensor, actv: Tensor, classes: bool) -> tuple[int, int]:
    """The image's H and W, of ``actv`` or of what its ``classes`` stand for; ``x`` must have them, or half of both.

    Raises:
        ValueError: it has neither, or another batch.
    """
    batch, height, width, _ = actv.shape
    if classes:
        height, width = of_classes(height), of_classes(width)
    if tuple(x.shape[:3]) not in ((batch, height, width), (batch, height / 2, width / 2)):
        raise ValueError(
            f"{name} must have H and W of actv, {height} and {width}, or half of both, got {tuple(x.shape)}"
        )
    return height, width


def pad_channels(tensor: Tensor, multiple: int) -> Tensor:
    """The last axis padded with zeros to a multiple; contiguous."""
    missing = -tensor.shape[-1] % multiple
    return torch.nn.functional.pad(tensor, (0, missing)).contiguous()


def torch_why_not(device_type: str) -> str | None:
    """Why the backend ``torch`` of a convolution cannot run."""
    return None if device_type == "cuda" else "needs cuda tensors: on the CPU ref is the same convolution in FP32"


def hopper_refuses(signature: Signature) -> str | None:
    """Why a Hopper convolution cannot take a call whose first tensors are x, weight and bias.

    Its matrix tiles step through channels by 16 and through outputs by 32.
    """
    (x_shape, dtype), _, ((outputs,), _), *_ = signature
    channels = x_shape[-1]
    if dtype != torch.float16 or channels % 16 or outputs % 32:
        return (
            f"made for float16, channels in multiples of 16 and outputs in multiples of 32; "
            f"got {dtype}, {channels}, {outputs}"
        )
    return None


def triton_refuses(signature: Signature) -> str | None:
    """Why a Triton convolution cannot take a call whose first tensors are x, weight and bias."""
    _, (weight_shape, _), (bias_shape, _), *_ = signature
    return taps_only(signature) if weight_shape[:1] == bias_shape else CLASSES_REFUSED


def taps_only(signature: Signature) -> str | None:
    """Why a backend that multiplies taps cannot take a call whose first tensors are x and weight."""
    _, (weight_shape, _), *_ = signature
    return WINOGRAD_REFUSED if _winograd.is_tiles(weight_shape) else None


def spatial_dims(like: Tensor) -> tuple[str, ...]:
    """Names of the axes between batch and channels, for messages."""
    return ("D", "H", "W") if like.dim() == 5 else ("H", "W")


def _shown(dims: Sequence[int | str]) -> str:
    return f"({', '.join(str(size) for size in dims)})"


def _contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tuple(tensor.stride())} for {tuple(tensor.shape)}")


def _overlap(first: Tensor, second: Tensor) -> bool:
    if first.device.type == "meta" or first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr():
        return False
    begins, ends = zip(_span(first), _span(second), strict=True)
    if max(begins) >= min(ends):
        return False
    stride = pixel_stride(first)
    if first.dtype != second.dtype or stride is None or stride != pixel_stride(second):
        return True
    channels = [(item.storage_offset() % stride, item.shape[-1]) for item in (first, second)]
    (low, width), (high, _) = sorted(channels)
    return low + width > high or any(start + count > stride for start, count in channels)


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage between which a tensor lies."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset())
    return begin * tensor.element_size(), (begin + int(last) + 1) * tensor.element_size()
