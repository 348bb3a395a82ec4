"""spade_blocks as the Triton kernels of its steps."""

from __future__ import annotations

from torch import Tensor

from lpkernels.triton.conv_spade import conv_spade


def spade_blocks(
    x: Tensor,
    dx: Tensor,
    actv: Tensor,
    weight: Tensor,
    bias: Tensor,
    spade_weight: Tensor,
    spade_bias: Tensor,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """Launch on checked arguments; see ``lpkernels.ops.spade_blocks``."""
    stacked = weight, bias, actv.split(spade_weight.shape[-1], dim=-1), spade_weight, spade_bias
    for step, own in enumerate(zip(*stacked, strict=True)):
        out = x.new_empty(x.shape)
        y = x.new_empty(x.shape) if step % 2 else None
        conv_spade(dx, *own, negative_slope, None if y is None else x, y, out)
        dx = out
        x = x if y is None else y
    return x, dx
