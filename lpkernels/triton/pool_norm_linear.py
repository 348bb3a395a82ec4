"""pool_norm_linear with Triton: mean over space, layer norm without affine, a linear map in float32.

A program owns BLOCK_N columns of one image's answer. All of them read the image's S * C activations (0.1 MB in half for
the published 64 x 768, out of L2) rather than wait for a kernel that pools once; the rows of the weight, (N, C)
float32, are asked for first and arrive meanwhile.
Published: 328 columns in 82 programs, 1 MB of weights, 0.5 MFLOP. Bound by one chain of loads: 3 microseconds on an
H200, by count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpkernels.triton._convnext import EPSILON, after_previous, overlap


@triton.jit
def _kernel(
    x,
    weight,
    bias,
    y,
    pixels,
    channels,
    N,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    exists = (c < channels)[None, :]
    after_previous(OVERLAP)

    w = tl.load(weight + n[:, None] * channels + c[None, :], (n < N)[:, None] & exists, 0.0)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    p = tl.arange(0, BLOCK_P)
    for start in range(0, pixels, BLOCK_P):
        place = image * pixels * channels + (start + p)[:, None] * channels + c[None, :]
        total += tl.load(x + place, (p < pixels - start)[:, None] & exists, 0.0).to(tl.float32)
    pooled = (tl.sum(total, 0) / pixels)[None, :]
    mean = tl.sum(pooled, 1) / channels
    centred = tl.where(exists, pooled - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels
    normalized = centred * (1.0 / tl.sqrt(variance + EPSILON))[:, None]
    out = tl.sum(w * normalized, 1) + tl.load(bias + n, n < N, 0.0)
    tl.store(y + image * N + n, out, n < N)


def pool_norm_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Launch on checked arguments; see ``lpkernels.ops.pool_norm_linear``."""
    batch, height, width, channels = x.shape
    outputs = weight.shape[0]
    y = x.new_empty((batch, outputs), dtype=torch.float32)
    block = triton.next_power_of_2(channels)
    _kernel[(triton.cdiv(outputs, 4), batch)](
        x,
        weight,
        bias,
        y,
        height * width,
        channels,
        outputs,
        BLOCK_P=max(1, min(16, 16384 // block)),
        BLOCK_N=4,
        BLOCK_C=block,
        num_warps=8,
        **overlap(x),
    )
    return y
