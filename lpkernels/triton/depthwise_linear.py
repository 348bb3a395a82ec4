"""depthwise_linear with Triton: a kernel for convolution and norm, and one for the linear layer and its GELU."""

from __future__ import annotations

from torch import Tensor

from lpkernels.triton._depthwise_norm import depthwise_norm
from lpkernels.triton._linear_gelu import linear_gelu


def depthwise_linear(x: Tensor, taps: Tensor, taps_bias: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Launch on checked arguments; see ``lpkernels.ops.depthwise_linear``."""
    return linear_gelu(depthwise_norm(x, taps, taps_bias), weight, bias)
