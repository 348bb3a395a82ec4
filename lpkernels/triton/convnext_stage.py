"""convnext_stage as the two Triton kernels of each block."""

from __future__ import annotations

from torch import Tensor

from lpkernels.triton.depthwise_linear import depthwise_linear
from lpkernels.triton.grn_linear import grn_linear


def convnext_stage(
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    wide_weight: Tensor,
    wide_bias: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """See ``lpkernels.ops.convnext_stage``."""
    for block in range(taps.shape[0]):
        h, squares = depthwise_linear(x, taps[block], taps_bias[block], wide_weight[block], wide_bias[block])
        x = grn_linear(h, squares, gamma[block], weight[block], bias[block], x)
    return x
