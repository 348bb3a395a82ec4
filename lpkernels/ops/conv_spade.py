"""conv_spade: a convolution, and the SPADE normalisation and activation of its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lpkernels import _winograd, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Op, Signature, native, reference, triton_kernel
from lpkernels.ops.spade_conv import TAPS


def _fake(*_: Any) -> None:
    return None


def _load() -> Callable[..., None]:
    from lpkernels.triton.conv_spade import conv_spade

    return conv_spade


def _written(compute: Callable[[Tensor], torch.dtype]) -> Callable[..., None]:
    """The reference's arithmetic in a dtype, written into ``y`` and ``out``."""

    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        actv: Tensor,
        spade_weight: Tensor,
        spade_bias: Tensor,
        negative_slope: float,
        residual: Tensor | None,
        y: Tensor | None,
        out: Tensor,
    ) -> None:
        own = x, weight, bias, actv, spade_weight, spade_bias
        answer, before = ref.conv_spade_in(compute(x), *own, negative_slope, residual)
        out.copy_(answer)
        if y is not None:
            y.copy_(before)

    return run


def _hopper_refuses(signature: Signature) -> str | None:
    ((*_, channels), dtype), (weight, _), _, ((*_, hidden), _), *_ = signature
    return hopper_refuses(dtype, channels, weight[0], hidden, _winograd.is_together(weight))


def hopper_refuses(dtype: torch.dtype, channels: int, outputs: int, hidden: int, winograd: bool) -> str | None:
    """Why the Hopper kernels cannot take a convolution and the SPADE behind it, with such weights."""
    if winograd:
        if dtype == torch.float16 and not any(size % 64 for size in (channels, outputs, hidden)):
            return None
        return (
            "takes weights of pack_winograd_weight in float16, for C, K and O in multiples of 64; "
            f"got {dtype}, {channels}, {hidden}, {outputs}"
        )
    if dtype != torch.float16 or channels % 16 or hidden % 64 or outputs % 32:
        return (
            f"made for float16, C in multiples of 16, K of 64 and O of 32; got {dtype}, {channels}, {hidden}, {outputs}"
        )
    return None


_OP = Op(
    "conv_spade(Tensor x, Tensor weight, Tensor bias, Tensor actv, Tensor spade_weight, Tensor spade_bias,"
    " float negative_slope, Tensor? residual, Tensor(a!)? y, Tensor(b!) out) -> ()",
    _fake,
    (
        native("conv_spade", "cuda", hopper=True, refuses=_hopper_refuses),
        triton_kernel("conv_spade", _load, refuses=_conv.taps_only),
        Backend("torch", _conv.torch_why_not, _written(lambda x: x.dtype), _conv.taps_only),
        reference(_written(lambda x: torch.float32)),
    ),
)


def conv_spade(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    actv: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float = 0.2,
    residual: Tensor | None = None,
    y: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """A 3x3 convolution and the SPADE of its answer, which need not be stored in between::

        y             = conv3x3(x, weight) + bias + residual
        gamma1 | beta = conv3x3(actv, spade_weight) + spade_bias   gamma1 = 1 + gamma
        out           = act((y - mean) * rstd * gamma1 + beta)     act(v) = v if v > 0 else negative_slope * v

    mean and rstd = 1 / sqrt(var + 1e-5) are those of each channel of y over the pixels of its image. It is ``conv_act``
    and ``spade_conv`` behind it; on Hopper one kernel where the weights are of ``pack_winograd_weight``, the GPU holds
    all of its blocks at once and they keep it busy: one for every 4 rows of 64 pixels by 64 outputs.

    Args:
        x: (B, H, W, C), channels-last (slices of a wider buffer too), float16, bfloat16 or float32.
        weight: (O, 3, 3, C), the dtype of ``x``: ``pack_conv_weight``. Or (O, T, 4, 16), ``pack_winograd_weight`` of
            it, together: sums of two neighbouring rows of ``x``, and of ``actv``, must then stay finite in float16.
        bias: (O,), float32.
        actv: (B, H, W, K), channels-last, the dtype of ``x``.
        spade_weight: (2O, 3, 3, K) of ``pack_spade_weight``, the dtype of ``x``. Or, where ``weight`` is of
            ``pack_winograd_weight``, (2O, T, 64) of it, kind by kind.
        spade_bias: (2O,), float32, from the same function.
        negative_slope: 1 for no activation, 0 for ReLU.
        residual: (B, H, W, O), channels-last, the dtype of ``x``.
        y: receives y, (B, H, W, O), channels-last, over none of the inputs; None: it is not kept.
        out: where to write the answer, channels-last, over none of the inputs nor y; None: a new tensor.

    Returns:
        (B, H, W, O), which is ``out``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit, devices differ, or ``y`` or ``out`` overlaps another tensor.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient.
    """
    _conv.activation("x", x, 4)
    taps = TAPS, TAPS
    winograd = _conv.taps_or_winograd("weight", weight, x, ("O",), taps, x.shape[-1], together=(True,))
    outputs = weight.shape[0]
    shape = (*x.shape[:3], outputs)
    _conv.float32("bias", bias, x, (outputs,))
    _conv.like_x("actv", actv, x, (*x.shape[:3], "K"))
    rows, hidden = (2 * outputs,), actv.shape[-1]
    if winograd != _conv.taps_or_winograd("spade_weight", spade_weight, x, rows, taps, hidden, together=(False,)):
        raise _conv.forms_differ(weight, spade_weight)
    _conv.float32("spade_bias", spade_bias, x, (2 * outputs,))
    if residual is not None:
        _conv.like_x("residual", residual, x, shape)
    inputs: dict[str, Tensor | None] = {"x": x, "weight": weight, "bias": bias, "actv": actv}
    inputs |= {"spade_weight": spade_weight, "spade_bias": spade_bias, "residual": residual}
    if y is not None:
        _conv.like_x("y", y, x, shape)
        _conv.no_overlap("y", y, **inputs)
    out = _conv.output(out, shape, x, **inputs, y=y)
    _OP(x, weight, bias, actv, spade_weight, spade_bias, float(negative_slope), residual, y, out)
    return out
