"""Weights of 3x3 and 3x3x3 convolutions as products that two neighbouring rows share, and where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels import _checks, _winograd, rewrites
from lpkernels.ops._op import Signature, registry


def pack_winograd_weight(weight: Tensor, together: bool = False) -> Tensor:
    """A packed weight (O, [3,] 3, 3, C) as products that two neighbouring rows of the answer share.

    ``lpkernels.rewrites.winograd_kernels`` along h: 4 products for two rows instead of 6, for the kernels that take
    them (``takes_winograd``). The weight is ``pack_conv_weight``'s, ``pack_spade_weight``'s or ``pack_gamma_weight``'s.
    Pack in float32 or float64, cast afterwards: taps are summed.

    Args:
        together: the arrangement that an op's kernel wants (``packs_together``).

    Returns:
        Together: (O, T, 4, 16), the four products of 16 channels in a tile. Else (O, T, 64), kind by kind: products of
        taps and of half sums in tiles of their own.

    Raises:
        ValueError: another shape, or channels that are no multiple of 16.
    """
    taps = (_winograd.TAPS,) * (3 if _checks.is_tensor("weight", weight).dim() == 5 else 2)
    _checks.shape("weight", weight, ("O", *taps, "C"))
    if weight.shape[-1] % _winograd.SLICE:
        raise ValueError(f"weight must have channels in multiples of {_winograd.SLICE}, got {tuple(weight.shape)}")
    return _winograd.tiles(rewrites.winograd_kernels(weight, -3), together).contiguous()


def packs_together(op: str, outputs: int) -> bool:
    """Which arrangement of ``pack_winograd_weight`` the kernel of ``op`` wants its weight for ``outputs`` in.

    "conv_spade" and "spade_blocks" want ``spade_weight`` kind by kind.
    """
    return op in ("conv_pool", "conv_spade", "spade_blocks") or (op, outputs) == ("conv_act", 64)


def takes_winograd(
    op: str, device_type: str, dtype: torch.dtype, channels: int, outputs: int, depth: int = 1, hidden: int = 0
) -> bool:
    """Whether ``pack_winograd_weight`` makes the weight to pack: a kernel of ``op`` that takes it runs on that device.

    Args:
        op: "conv_act", "conv_pool", "spade_conv", "conv_spade" or "spade_blocks".
        channels: of what is convolved.
        outputs: rows of the weight.
        depth: taps along d, 1 for pictures.
        hidden: of "conv_spade" and "spade_blocks": channels of ``actv``, of one step.
    """
    if channels % _winograd.SLICE or hidden % _winograd.SLICE:
        return False
    signature = _signature(op, dtype, channels, outputs, depth, hidden)
    return registry()[op].choose(device_type, signature).backend == "cuda"


def _signature(op: str, dtype: torch.dtype, channels: int, outputs: int, depth: int, hidden: int) -> Signature:
    """A small call of ``op`` with such weights."""
    pixels = (1, 2, 2, 2) if depth > 1 else (1, 2, 2)
    steps = (2,) if op == "spade_blocks" else ()

    def conv(channels: int, rows: int, together: bool) -> Signature:
        weight = *steps, rows, *_winograd.row(channels, depth, together)
        return (weight, dtype), ((*steps, rows), torch.float32)

    own, y = conv(channels, outputs, packs_together(op, outputs)), ((*pixels, outputs), dtype)
    x, actv = ((*pixels, channels), dtype), ((*pixels, hidden * (steps or (1,))[0]), dtype)
    if op == "spade_blocks":
        return (y, x, actv, *own, *conv(hidden, 2 * outputs, together=False))
    if op == "conv_spade":
        return (x, *own, actv, *conv(hidden, 2 * outputs, together=False), y)
    if op == "spade_conv":
        channels = outputs // 2  # gamma's and beta's rows
        y = ((*pixels, channels), dtype)
        return (x, *own, y, ((1, channels, 2), torch.float32), y)
    return (x, *own, y)
