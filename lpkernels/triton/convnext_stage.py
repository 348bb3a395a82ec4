"""convnext_stage as the two Triton kernels of each block, and one for the step before them."""

from __future__ import annotations

from torch import Tensor

from lpkernels.triton.depthwise_linear import depthwise_linear
from lpkernels.triton.grn_linear import grn_linear
from lpkernels.triton.norm_downsample import norm_downsample


def convnext_stage(
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    wide_weight: Tensor,
    wide_bias: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    step_weight: Tensor | None,
    step_bias: Tensor | None,
) -> Tensor:
    """See ``lpkernels.ops.convnext_stage``."""
    if step_weight is not None and step_bias is not None:
        x = norm_downsample(x, step_weight, step_bias)
    for block in range(taps.shape[0]):
        h, squares = depthwise_linear(x, taps[block], taps_bias[block], wide_weight[block], wide_bias[block])
        x = grn_linear(h, squares, gamma[block], weight[block], bias[block], x)
    return x
