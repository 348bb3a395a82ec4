"""spade_conv: the convolution that makes SPADE's gamma and beta, with the modulation and activation after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpkernels import _checks, _winograd, ref, rewrites
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference, triton_kernel
from lpkernels.ops.conv_act import MOST_PARTS

TAPS = 3


def pack_spade_weight(
    gamma_weight: Tensor, gamma_bias: Tensor, beta_weight: Tensor, beta_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """``mlp_gamma`` and ``mlp_beta``, weights (C, K, 3, 3) and biases (C,), as ``spade_conv`` takes them.

    Returns:
        weight: (2C, 3, 3, K), contiguous; rows in the order of ``lpkernels.rewrites.merge_gamma_beta``.
        bias: (2C,), float32 (float64 for float64 weights), with the 1 of 1 + gamma.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape does not fit.
    """
    _check_conv("gamma", gamma_weight, gamma_bias)
    _check_conv("beta", beta_weight, beta_bias)
    _checks.shape("beta_weight", beta_weight, tuple(gamma_weight.shape))
    weight, bias = rewrites.merge_gamma_beta(gamma_weight, _wide(gamma_bias), beta_weight, _wide(beta_bias))
    return _conv.pixels(weight).contiguous(), bias


def pack_gamma_weight(gamma_weight: Tensor, gamma_bias: Tensor) -> tuple[Tensor, Tensor]:
    """``mlp_gamma`` alone, for the shortcut's SPADE, whose beta goes elsewhere (``rewrites.merge_shortcut_beta``).

    Returns:
        weight: (C, 3, 3, K), contiguous.
        bias: (C,), float32 (float64 for float64 weights), with the 1 of 1 + gamma.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape does not fit.
    """
    _check_conv("gamma", gamma_weight, gamma_bias)
    return _conv.pixels(gamma_weight).contiguous(), _wide(gamma_bias) + 1


def _check_conv(name: str, weight: Tensor, bias: Tensor) -> None:
    _checks.shape(f"{name}_weight", _checks.is_tensor(f"{name}_weight", weight), ("C", "K", TAPS, TAPS))
    _checks.shape(f"{name}_bias", _checks.is_tensor(f"{name}_bias", bias), (weight.shape[0],))


def _wide(bias: Tensor) -> Tensor:
    return bias if bias.dtype == torch.float64 else bias.float()


def _fake(*_: Any) -> None:
    return None


def _load() -> Callable[..., None]:
    from lpkernels.triton.spade_conv import spade_conv

    return spade_conv


def _written(compute: Callable[[Tensor], torch.dtype]) -> Callable[..., None]:
    """The reference's arithmetic in a dtype, written into ``out``."""

    def run(
        actv: Tensor, weight: Tensor, bias: Tensor, x: Tensor, stats: Tensor, negative_slope: float, out: Tensor
    ) -> None:
        out.copy_(ref.spade_conv_in(compute(actv), actv, weight, bias, x, stats, negative_slope))

    return run


def _hopper_refuses(signature: Signature) -> str | None:
    ((*_, inputs), dtype), (weight, _), _, ((*_, channels), _), (stats, _), *_ = signature
    if len(stats) == 4 and stats[1] > MOST_PARTS:
        return f"adds up statistics in at most {MOST_PARTS} parts, got {stats[1]}"
    if dtype != torch.float16 or inputs % 64 or channels % 32:
        return (
            f"made for float16, K in multiples of 64 and channels in multiples of 32; got {dtype}, {inputs}, {channels}"
        )
    if _winograd.is_tiles(weight) and (weight[0] % 128 or weight[0] == channels):
        return (
            f"takes a weight of pack_winograd_weight of gamma and beta, rows in multiples of 128; got {weight[0]} rows "
            f"for {channels} channels"
        )
    return None


_OP = Op(
    "spade_conv(Tensor actv, Tensor weight, Tensor bias, Tensor x, Tensor stats, float negative_slope,"
    " Tensor(a!) out) -> ()",
    _fake,
    (
        native("spade_conv", "cuda", hopper=True, refuses=_hopper_refuses),
        triton_kernel("spade_conv", _load, refuses=_conv.triton_refuses),
        Backend("torch", _conv.torch_why_not, _written(lambda actv: actv.dtype), _conv.taps_only),
        reference(_written(lambda actv: torch.float32)),
    ),
)


def spade_conv(
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    stats: Tensor,
    negative_slope: float = 0.2,
    out: Tensor | None = None,
) -> Tensor:
    """A SPADE normalisation from its hidden activations on, with the LeakyReLU that follows it::

        gamma1 | beta = conv3x3(actv, weight) + bias               gamma1 = 1 + gamma
        out           = act((x - mean) * rstd * gamma1 + beta)     act(v) = v if v > 0 else negative_slope * v

    (Park et al. 2019, equation 1, with instance norm; the decoder G of LivePortrait.) gamma and beta, twice the size of
    the answer, need never be stored.

    Args:
        actv: (B, H, W, K), channels-last (a slice of the merged ``mlp_shared``'s answer too), float16, bfloat16 or
            float32; or the classes (B, 3h, 3w, K) of activations H, W = 4h, 4w (``upsample_conv``).
        weight: (2C, 3, 3, K) of ``pack_spade_weight``, or (C, 3, 3, K) of ``pack_gamma_weight``, then beta is zero;
            the dtype of ``x``. For classes 16 times as many rows: ``pack_class_weight`` of it. Or (2C or C, T, 64),
            ``pack_winograd_weight`` of it, kind by kind (of C rows only the reference takes it): sums of two
            neighbouring rows of ``actv`` must then stay finite in float16.
        bias: (2C,) or (C,), float32, from the same function.
        x: (B, H, W, C), or (B, H/2, W/2, C), which is then read as enlarged (nearest); channels-last, the dtype of
            ``actv``.
        stats: (B, C, 2), float32, mean and 1 / sqrt(var + eps) of every channel of ``x``: ``instance_norm_stats``; or
            (B, P, C, 2), mean and var of P equal parts of the pixels, as ``conv_act`` leaves them.
        negative_slope: 1 for no activation, 0 for ReLU.
        out: where to write the answer, channels-last, over none of the inputs; None: a new tensor.

    Returns:
        (B, H, W, C), which is ``out``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``out`` overlaps an input.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x, 4)
    _conv.activation("actv", actv, 4)
    batch, _, _, inputs = actv.shape
    channels = x.shape[-1]
    winograd = _conv.taps_or_winograd("weight", weight, x, ("2C",), (TAPS, TAPS), inputs, together=(False,))
    classes = not winograd and _conv.reads_classes("actv", actv, weight, bias)
    rows = bias.shape[0] if classes else weight.shape[0]
    if rows not in (channels, 2 * channels):
        raise ValueError(
            f"weight must have {2 * channels} rows (gamma and beta) or {channels} (gamma alone) for the {channels} "
            f"channels of x, got {tuple(weight.shape)}"
        )
    _conv.float32("bias", bias, x, (rows,))
    height, width = _conv.same_or_half("x", x, actv, classes)
    _conv.statistics(stats, x, channels)
    _checks.same_dtype("x", x, actv=actv)
    _checks.same_device("x", x, actv=actv)
    inputs_of = {"actv": actv, "weight": weight, "bias": bias, "x": x, "stats": stats}
    out = _conv.output(out, (batch, height, width, channels), x, **inputs_of)
    _OP(actv, weight, bias, x, stats, float(negative_slope), out)
    return out
