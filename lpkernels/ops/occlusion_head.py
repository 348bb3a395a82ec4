"""occlusion_head: the occlusion map of the dense motion network, its 7x7 convolution over all channels and depths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import HOPPER_SPACING, Backend, Op, Signature, native, reference, triton_kernel

KERNEL = 7
ROWS = 56  # 49 taps, padded to a matrix product's multiple of 8
CHANNEL_MULTIPLE = 16
MOST_CHANNELS = 512  # of the CUDA kernel


def pack_occlusion_weight(weight: Tensor, depth: int) -> Tensor:
    """The weight (1, C * D, 7, 7) of the occlusion conv as ``occlusion_head`` takes it: (56, D, C'), contiguous.

    Row kh * 7 + kw holds that tap of every depth and channel (published channel c * D + d); rows beyond 49 and channels
    beyond C, up to the next multiple of 16, are zero.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, or channels that are no multiple of ``depth``.
    """
    _checks.shape("weight", _checks.is_tensor("weight", weight), (1, "C * D", KERNEL, KERNEL))
    if depth < 1 or weight.shape[1] % depth:
        raise ValueError(f"weight must have channels in multiples of the depth, {depth}, got {tuple(weight.shape)}")
    taps = weight[0].unflatten(0, (-1, depth)).permute(2, 3, 1, 0).flatten(0, 1)
    padded = taps.new_zeros(ROWS, depth, -(-taps.shape[2] // CHANNEL_MULTIPLE) * CHANNEL_MULTIPLE)
    padded[: KERNEL * KERNEL, :, : taps.shape[2]] = taps
    return padded


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], *x.shape[2:4]), dtype=torch.float32)


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.occlusion_head import occlusion_head

    return occlusion_head


def _torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ref.occlusion_head_in(x.dtype, x, weight, bias)


def _cuda_refuses(signature: Signature) -> str | None:
    (*_, channels), dtype = signature[0]
    if dtype != torch.float16 or channels % CHANNEL_MULTIPLE or channels > MOST_CHANNELS:
        return (
            f"made for float16 and channels in multiples of {CHANNEL_MULTIPLE}, at most {MOST_CHANNELS}; "
            f"got {dtype}, {channels}"
        )
    return None


_OP = Op(
    "occlusion_head(Tensor x, Tensor weight, Tensor bias) -> Tensor map",
    _fake,
    (
        native("occlusion_head", "cuda", clusters=True, spacing=HOPPER_SPACING, refuses=_cuda_refuses),
        triton_kernel("occlusion_head", _load),
        Backend("torch", _conv.torch_why_not, _torch),
        reference(ref.occlusion_head),
    ),
)


def occlusion_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """How visible each place of the driving frame is in the source: ``sigmoid(conv7x7(x) + bias)`` over C * D channels.

    A convolution with a single output leaves a matrix unit empty. So its 49 taps become the columns of one product per
    pixel over depth and channels, whose answers are then summed at 49 shifted places.

    Args:
        x: (B, D, H, W, C), the hourglass's answer, channels-last (a slice of a wider buffer too), float16, bfloat16 or
            float32, with as many channels as the packed weight; those beyond the network's own are zero.
        weight: (56, D, C), the dtype of ``x``: ``pack_occlusion_weight``.
        bias: (1,), float32.

    Returns:
        (B, H, W), float32, in 0..1.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x, 5)
    _conv.weight("weight", weight, x, (ROWS, x.shape[1], x.shape[4]))
    _conv.float32("bias", bias, x, (1,))
    occlusion: Tensor = _OP(x, weight, bias)
    return occlusion
