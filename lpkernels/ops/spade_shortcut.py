"""spade_shortcut: the shortcut of a residual block that changes its width, SPADE and 1x1 conv, in one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpkernels import _checks, ref, rewrites
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference
from lpkernels.ops.conv_act import MOST_PARTS
from lpkernels.ops.spade_conv import TAPS, pack_gamma_weight

CHANNELS, OUTPUTS = 256, 64  # of the kernel


def pack_shortcut_weight(
    shortcut: Tensor,
    shortcut_bias: Tensor,
    gamma_weight: Tensor,
    gamma_bias: Tensor,
    beta_weight: Tensor,
    beta_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``conv_s``, (O, C, 1, 1) and (O,), and its SPADE's convs, (C, K, 3, 3) and (C,), for ``spade_shortcut``.

    Pack in float32 or float64, cast afterwards: beta is merged (``lpkernels.rewrites.merge_shortcut_beta``).

    Returns:
        weight: (C + O, 3, 3, K), contiguous: gamma's rows, then those of the beta behind ``conv_s``.
        bias: (C + O,), float32 (float64 for float64 weights): gamma's with the 1 of 1 + gamma, then all of the rest.
        shortcut: (O, C), contiguous.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape does not fit.
    """
    gamma, gamma_shift = pack_gamma_weight(gamma_weight, gamma_bias)
    channels = gamma.shape[0]
    _checks.shape("shortcut", _checks.is_tensor("shortcut", shortcut), ("O", channels, 1, 1))
    _checks.shape("shortcut_bias", _checks.is_tensor("shortcut_bias", shortcut_bias), (shortcut.shape[0],))
    _checks.shape("beta_weight", _checks.is_tensor("beta_weight", beta_weight), tuple(gamma_weight.shape))
    _checks.shape("beta_bias", _checks.is_tensor("beta_bias", beta_bias), (channels,))
    merged, shift = rewrites.merge_shortcut_beta(shortcut, beta_weight, beta_bias)
    weight = torch.cat([gamma, _conv.pixels(merged)])
    bias = torch.cat([gamma_shift, (shift + shortcut_bias).to(gamma_shift.dtype)])
    return weight, bias, shortcut.flatten(1).contiguous()


def fuses_shortcut(dtype: torch.dtype, hidden: int, channels: int, outputs: int) -> bool:
    """Whether the kernel is made for K ``hidden``, C ``channels`` and O ``outputs``: those of the published decoder."""
    return dtype == torch.float16 and hidden % 64 == 0 and (channels, outputs) == (CHANNELS, OUTPUTS)


def _fake(*_: Any) -> None:
    return None


def _written(compute: Callable[[Tensor], torch.dtype]) -> Callable[..., None]:
    """The reference's arithmetic in a dtype, written into ``out``."""

    def run(
        actv: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, x: Tensor, stats: Tensor, out: Tensor
    ) -> None:
        out.copy_(ref.spade_shortcut_in(compute(actv), actv, weight, bias, shortcut, x, stats))

    return run


def _hopper_refuses(signature: Signature) -> str | None:
    ((*_, hidden), dtype), _, _, ((outputs, channels), _), _, (stats, _), *_ = signature
    if len(stats) == 4 and stats[1] > MOST_PARTS:
        return f"adds up statistics in at most {MOST_PARTS} parts, got {stats[1]}"
    if not fuses_shortcut(dtype, hidden, channels, outputs):
        return (
            f"made for float16, K in multiples of 64, {CHANNELS} channels and {OUTPUTS} outputs; "
            f"got {dtype}, {hidden}, {channels}, {outputs}"
        )
    return None


_OP = Op(
    "spade_shortcut(Tensor actv, Tensor weight, Tensor bias, Tensor shortcut, Tensor x, Tensor stats,"
    " Tensor(a!) out) -> ()",
    _fake,
    (
        native("spade_shortcut", "cuda", hopper=True, refuses=_hopper_refuses),
        Backend("torch", _conv.torch_why_not, _written(lambda actv: actv.dtype)),
        reference(_written(lambda actv: torch.float32)),
    ),
)


def spade_shortcut(
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    shortcut: Tensor,
    x: Tensor,
    stats: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """The shortcut of a SPADE residual block that changes its width, from the hidden activations on::

        gamma1 | beta = conv3x3(actv, weight) + bias               gamma1 = 1 + gamma; beta is conv_s of SPADE's
        out           = conv_s((x - mean) * rstd * gamma1) + beta

    (Park et al. 2019, figure 4: the 1x1 conv and its SPADE, without activation.) Both convolutions read the same
    activations, and the normalised values, as wide as ``x``, need never be stored.

    Args:
        actv: (B, H, W, K), channels-last (a slice of the merged ``mlp_shared``'s answer too), float16, bfloat16 or
            float32; or the classes (B, 3h, 3w, K) of activations H, W = 4h, 4w (``upsample_conv``).
        weight: (C + O, 3, 3, K) of ``pack_shortcut_weight``, the dtype of ``x``; for classes 16 times as many rows:
            ``pack_class_weight`` of it.
        bias: (C + O,), float32, from the same function.
        shortcut: (O, C), of ``conv_s``, the dtype of ``x``, from the same function.
        x: (B, H, W, C), or (B, H/2, W/2, C), which is then read as enlarged (nearest); channels-last, the dtype of
            ``actv``.
        stats: (B, C, 2), float32, mean and 1 / sqrt(var + eps) of every channel of ``x``: ``instance_norm_stats``; or
            (B, P, C, 2), mean and var of P equal parts of the pixels, as ``conv_act`` leaves them.
        out: where to write the answer, channels-last, over none of the inputs; None: a new tensor.

    Returns:
        (B, H, W, O), which is ``out``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``out`` overlaps an input.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x, 4)
    _conv.activation("actv", actv, 4)
    batch, _, _, hidden = actv.shape
    channels = x.shape[-1]
    _conv.weight("shortcut", shortcut, x, ("O", channels))
    outputs = shortcut.shape[0]
    _conv.weight("weight", weight, x, ("C + O", TAPS, TAPS, hidden))
    classes = _conv.reads_classes("actv", actv, weight, bias)
    rows = bias.shape[0] if classes else weight.shape[0]
    if rows != channels + outputs:
        raise ValueError(
            f"weight must have {channels + outputs} rows, for the {channels} channels of x and the {outputs} outputs "
            f"of shortcut, got {tuple(weight.shape)}"
        )
    _conv.float32("bias", bias, x, (rows,))
    height, width = _conv.same_or_half("x", x, actv, classes)
    _conv.statistics(stats, x, channels)
    _checks.same_dtype("x", x, actv=actv)
    _checks.same_device("x", x, actv=actv)
    inputs_of = {"actv": actv, "weight": weight, "bias": bias, "shortcut": shortcut, "x": x, "stats": stats}
    out = _conv.output(out, (batch, height, width, outputs), x, **inputs_of)
    _OP(actv, weight, bias, shortcut, x, stats, out)
    return out
