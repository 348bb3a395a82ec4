"""mask_conv3d: the mask head of the dense motion network, its 7x7x7 convolution with kw folded into the columns."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels import _checks, _row_pairs, ref, rewrites
from lpkernels.ops._op import Backend, Op, Signature, native, reference

KERNEL = 7
COLUMN_MULTIPLE = 16
CHANNEL_MULTIPLE = 16
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def pack_mask_weight(weight: Tensor) -> Tensor:
    """A conv3d weight (O, C, 7, 7, 7) as ``mask_conv3d`` takes it: (N, 7, 7, C').

    Row kw * O + o holds tap kw of output o over (kd, kh, c); rows and channels are zero-padded to multiples of 16.

    Raises:
        ValueError: another shape.
    """
    _checks.shape("weight", _checks.is_tensor("weight", weight), ("O", "C", KERNEL, KERNEL, KERNEL))
    outputs, channels = weight.shape[:2]
    rows = weight.permute(4, 0, 2, 3, 1).flatten(0, 1)
    padded = rows.new_zeros(_round_up(KERNEL * outputs, COLUMN_MULTIPLE), KERNEL, KERNEL, padded_channels(channels))
    padded[: rows.shape[0], ..., :channels] = rows
    return padded


def pack_mask_row_pairs(weight: Tensor) -> Tensor:
    """The same as products that two neighbouring rows of the logits share, in tiles: (N, 16, 9, 64).

    ``lpkernels.rewrites.row_pair_kernels`` along h: 10 products for two rows instead of 14, for the kernel that takes
    them: ``pairs_rows``. Pack in float32 or better and cast then, for taps are summed up.

    Raises:
        ValueError: another shape, or channels that are not 144 when padded.
    """
    taps = pack_mask_weight(weight)
    if taps.shape[3] != _row_pairs.CHANNELS:
        raise ValueError(f"weight must have 129 to {_row_pairs.CHANNELS} channels, got {tuple(weight.shape)}")
    return _row_pairs.tiles(rewrites.row_pair_kernels(taps, 2))


def pairs_rows(device_type: str, dtype: torch.dtype, channels: int, outputs: int) -> bool:
    """Whether ``pack_mask_row_pairs`` makes the weight to pack: its kernel runs on that device, for these channels."""
    x = ((1, 1, 1, 1, padded_channels(channels)), dtype)
    tiles = (1, _row_pairs.STEPS, _row_pairs.KERNELS, _row_pairs.STEP_CHANNELS)
    return _OP.choose(device_type, (x, (tiles, dtype), ((outputs,), torch.float32))).backend == "cuda"


def padded_channels(channels: int) -> int:
    """Channels of the activations and of the packed weight: the next multiple of 16."""
    return _round_up(channels, CHANNEL_MULTIPLE)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _fake(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return bias.new_empty((*x.shape[:4], bias.shape[0]))


def _torch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ref.mask_conv3d_in(x.dtype, x, weight, bias).float().contiguous()


def _hopper_refuses(signature: Signature) -> str | None:
    ((*_, width, channels), dtype), (weight, _), ((outputs,), _) = signature
    if weight[1] == KERNEL:
        return "made for a weight of row pairs (pack_mask_row_pairs), got one of taps"
    if (channels, outputs, dtype) != (144, 22, torch.float16) or width > 64:
        return f"made for float16, 144 channels, 22 outputs and W up to 64; got {dtype}, {channels}, {outputs}, {width}"
    return None


def _torch_refuses(signature: Signature) -> str | None:
    _, (weight, _), _ = signature
    return None if weight[1] == KERNEL else "made for a weight of taps (pack_mask_weight), got one of row pairs"


def _torch_why_not(device_type: str) -> str | None:
    return None if device_type == "cuda" else "needs cuda tensors: on the CPU ref is the same convolution in FP32"


_OP = Op(
    "mask_conv3d(Tensor x, Tensor weight, Tensor bias) -> Tensor logits",
    _fake,
    (
        native("mask_conv3d", "cuda", hopper=True, refuses=_hopper_refuses),
        Backend("torch", _torch_why_not, _torch, _torch_refuses),
        reference(lambda *args: ref.mask_conv3d(*args).float().contiguous()),
    ),
)


def mask_conv3d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mask logits of the dense motion network: conv3d 7x7x7 with padding 3, from channels-last activations.

    A matrix tile of 22 outputs would stay mostly empty, so the Hopper kernel computes the seven kw taps as 7 * 22
    columns of one product and sums them, shifted along W (``lpkernels.rewrites.fold_kw_into_columns``), for two rows
    along H at a time. Sums and differences of rows of ``x`` must stay finite in float16 there. Elsewhere (backend
    ``torch``) it is one cuDNN convolution.

    Args:
        x: (B, D, H, W, C), float16, bfloat16 or float32, C a multiple of 16; channels beyond the weight's own are zero.
        weight: (N, 7, 7, C), the dtype of ``x``, made by ``pack_mask_weight``. Or, with C = 144, of row pairs,
            (N, 16, 9, 64): ``pack_mask_row_pairs``.
        bias: (O,), float32, 7 * O <= N.

    Returns:
        (B, O, D, H, W), float32, with the strides of a contiguous (B, D, H, W, O): ``flow_warp`` reads it as it is.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape does not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _checks.is_tensor("x", x)
    _checks.is_tensor("weight", weight)
    _checks.is_tensor("bias", bias)
    _checks.shape("x", x, ("B", "D", "H", "W", "C"))
    channels = x.shape[4]
    if channels % CHANNEL_MULTIPLE:
        raise ValueError(f"x must have channels padded to a multiple of {CHANNEL_MULTIPLE}, got {tuple(x.shape)}")
    if channels != _row_pairs.CHANNELS or not _row_pairs.is_tiles(weight):
        _checks.shape("weight", weight, ("N", KERNEL, KERNEL, channels))
    _checks.shape("bias", bias, ("O",))
    if weight.shape[0] != _round_up(KERNEL * bias.shape[0], COLUMN_MULTIPLE):
        raise ValueError(f"weight must have the columns pack_mask_weight gives, got {tuple(weight.shape)}")
    _checks.dtype("x", x, _DTYPES)
    _checks.same_dtype("x", x, weight=weight)
    _checks.dtype("bias", bias, (torch.float32,))
    _checks.same_device("x", x, weight=weight, bias=bias)
    logits: Tensor = _OP(x.contiguous(), weight.contiguous(), bias.contiguous())
    return logits.permute(0, 4, 1, 2, 3)
