"""spade_blocks: residual blocks of SPADE that keep size and width, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpkernels import _winograd, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference, triton_kernel
from lpkernels.ops.conv_spade import hopper_refuses
from lpkernels.ops.spade_conv import TAPS

FEWEST_STEPS = 2  # of one the block would have no y


def _fake(
    x: Tensor,
    dx: Tensor,
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _load() -> Callable[..., tuple[Tensor, Tensor]]:
    from lpkernels.triton.spade_blocks import spade_blocks

    return spade_blocks


def _plain(compute: Callable[[Tensor], torch.dtype]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The reference's arithmetic in a dtype."""

    def run(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        y, out = ref.spade_blocks_in(compute(x), x, *others)
        return y.contiguous(), out.contiguous()

    return run


def _hopper_refuses(signature: Signature) -> str | None:
    ((*_, channels), dtype), _, ((*_, hidden), _), (weight, _), *_ = signature
    return hopper_refuses(dtype, channels, channels, hidden // weight[0], _winograd.is_together(weight))


def _taps_only(signature: Signature) -> str | None:
    return _conv.WINOGRAD_REFUSED if _winograd.is_together(signature[3][0]) else None


_OP = Op(
    "spade_blocks(Tensor x, Tensor dx, Tensor actv, Tensor weight, Tensor bias, Tensor spade_weight,"
    " Tensor spade_bias, float negative_slope) -> (Tensor y, Tensor out)",
    _fake,
    (
        native("spade_blocks", "cuda", hopper=True, refuses=_hopper_refuses),
        triton_kernel("spade_blocks", _load, refuses=_taps_only),
        Backend("torch", _conv.torch_why_not, _plain(lambda x: x.dtype), _taps_only),
        reference(_plain(lambda x: torch.float32)),
    ),
)


def spade_blocks(
    x: Tensor,
    dx: Tensor,
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float = 0.2,
) -> tuple[Tensor, Tensor]:
    """SPADE residual blocks, two of S steps each, from behind the first's first SPADE to behind a later one::

        for s in range(S):
            a             = conv3x3(dx, weight[s]) + bias[s]           + x where s is odd, and that is the new x
            gamma1 | beta = conv3x3(actv[..., s K : (s + 1) K], spade_weight[s]) + spade_bias[s]
            dx            = act((a - mean) * rstd * gamma1 + beta)     act(v) = v if v > 0 else negative_slope * v

    Each step is ``conv_spade``. With S odd the last block is left behind its first convolution: what follows adds x. On
    Hopper it is one kernel where a step's ``conv_spade`` is one, else two for each step.

    Args:
        x: (B, H, W, C), channels-last (slices of a wider buffer too), float16, bfloat16 or float32.
        dx: (B, H, W, C), channels-last, the dtype of ``x``: the first SPADE's answer to ``x``, activated.
        actv: (B, H, W, S K), channels-last, the dtype of ``x``: hidden activations of all steps' SPADEs.
        weight: (S, C, 3, 3, C), the dtype of ``x``: ``pack_conv_weight`` of each step, stacked. Or (S, C, T, 4, 16),
            ``pack_winograd_weight`` of each, together: sums of two neighbouring rows of ``dx``, of every step, and of
            ``actv`` must then stay finite in float16.
        bias: (S, C), float32.
        spade_weight: (S, 2C, 3, 3, K) of ``pack_spade_weight``, the dtype of ``x``. Or, where ``weight`` is of
            ``pack_winograd_weight``, (S, 2C, T, 64) of it, kind by kind.
        spade_bias: (S, 2C), float32, from the same function.
        negative_slope: 1 for no activation, 0 for ReLU.

    Returns:
        The last x and the last dx, (B, H, W, C) both, the dtype of ``x``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or S is less than 2.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    x = _conv.activation("x", x, 4)
    channels = x.shape[-1]
    _conv.like_x("dx", dx, x, tuple(x.shape))
    taps = TAPS, TAPS
    winograd = _conv.taps_or_winograd("weight", weight, x, ("S", channels), taps, channels, together=(True,))
    steps = weight.shape[0]
    if steps < FEWEST_STEPS:
        raise ValueError(f"weight must hold {FEWEST_STEPS} steps or more, got {steps}")
    _conv.float32("bias", bias, x, (steps, channels))
    _conv.like_x("actv", actv, x, (*x.shape[:3], "S K"))
    hidden, rest = divmod(actv.shape[-1], steps)
    if rest:
        raise ValueError(f"actv must have channels for each of {steps} steps, got {tuple(actv.shape)}")
    rows = steps, 2 * channels
    if winograd != _conv.taps_or_winograd("spade_weight", spade_weight, x, rows, taps, hidden, together=(False,)):
        raise _conv.forms_differ(weight, spade_weight)
    _conv.float32("spade_bias", spade_bias, x, (steps, 2 * channels))
    y, out = _OP(x, dx, actv, weight, bias, spade_weight, spade_bias, float(negative_slope))
    return y, out
