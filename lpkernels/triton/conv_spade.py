"""conv_spade as the Triton kernels of its two halves."""

from __future__ import annotations

from torch import Tensor

from lpkernels.triton.conv_act import conv_act
from lpkernels.triton.spade_conv import spade_conv


def conv_spade(
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
    """Launch on checked arguments; see ``lpkernels.ops.conv_spade``."""
    kept = x.new_empty(out.shape) if y is None else y
    stats = bias.new_empty(out.shape[0], out.shape[-1], 2)
    conv_act(x, weight, bias, 1.0, residual, None, kept, stats)
    spade_conv(actv, spade_weight, spade_bias, kept, stats, negative_slope, out)
