"""Weights of 3x3 and 3x3x3 convolutions as products that two neighbouring rows share, and where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels import _checks, _winograd, rewrites
from lpkernels.ops._op import registry


def pack_winograd_weight(weight: Tensor) -> Tensor:
    """A packed weight (O, [3,] 3, 3, C) as products that two neighbouring rows of the answer share: (O, T, 64).

    ``lpkernels.rewrites.winograd_kernels`` along h: 4 products for two rows instead of 6, for the kernels that take
    them (``takes_winograd``). The weight is ``pack_conv_weight``'s, ``pack_spade_weight``'s or ``pack_gamma_weight``'s.
    Pack in float32 or float64, cast afterwards: taps are summed.

    Raises:
        ValueError: another shape, or channels that are no multiple of 16.
    """
    taps = (_winograd.TAPS,) * (3 if _checks.is_tensor("weight", weight).dim() == 5 else 2)
    _checks.shape("weight", weight, ("O", *taps, "C"))
    if weight.shape[-1] % _winograd.SLICE:
        raise ValueError(f"weight must have channels in multiples of {_winograd.SLICE}, got {tuple(weight.shape)}")
    return _winograd.tiles(rewrites.winograd_kernels(weight, -3)).contiguous()


def takes_winograd(op: str, device_type: str, dtype: torch.dtype, channels: int, outputs: int, depth: int) -> bool:
    """Whether ``pack_winograd_weight`` makes the weight to pack: a kernel of ``op`` that takes it runs on that device.

    Args:
        op: "conv_act", "conv_pool" or "spade_conv".
        channels: of what is convolved.
        outputs: rows of the weight.
        depth: taps along d, 1 for pictures.
    """
    if channels % _winograd.SLICE:
        return False
    pixels = (1, 2, 2, 2) if depth > 1 else (1, 2, 2)
    tiles = (outputs, _winograd.count(channels, depth), _winograd.STEP_CHANNELS)
    y = ((*pixels, outputs), dtype)
    normalised = (y, ((1, outputs, 2), torch.float32)) if op == "spade_conv" else ()
    signature = (((*pixels, channels), dtype), (tiles, dtype), ((outputs,), torch.float32), *normalised, y)
    return registry()[op].choose(device_type, signature).backend == "cuda"
