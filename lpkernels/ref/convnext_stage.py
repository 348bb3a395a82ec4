"""convnext_stage: ConvNeXt V2 blocks one after the other, each as its two halves, and the step before them."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels.ref._convnext import wide
from lpkernels.ref.depthwise_linear import depthwise_linear_in
from lpkernels.ref.grn_linear import grn_linear_in
from lpkernels.ref.norm_downsample import norm_downsample_in


def convnext_stage(
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    wide_weight: Tensor,
    wide_bias: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    step_weight: Tensor | None = None,
    step_bias: Tensor | None = None,
) -> Tensor:
    """All blocks in FP32 (FP64 for FP64); see ``lpkernels.ops.convnext_stage``."""
    weights = taps, taps_bias, wide_weight, wide_bias, gamma, weight, bias
    return convnext_stage_in(wide(x), x, *weights, step_weight, step_bias)


def convnext_stage_in(
    compute: torch.dtype,
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    wide_weight: Tensor,
    wide_bias: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    step_weight: Tensor | None = None,
    step_bias: Tensor | None = None,
) -> Tensor:
    """The same with activations in the dtype ``compute``."""
    if step_weight is not None and step_bias is not None:
        x = norm_downsample_in(compute, x, step_weight, step_bias)
    for block in range(taps.shape[0]):
        h, squares = depthwise_linear_in(
            compute, x, taps[block], taps_bias[block], wide_weight[block], wide_bias[block]
        )
        x = grn_linear_in(compute, h, squares, gamma[block], weight[block], bias[block], residual=x)
    return x
