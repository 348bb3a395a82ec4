"""grn_linear with Triton: global response norm as a factor per column of x, linear, bias, residual.

x is (B, S, K), squares (B, BLOCKS, K), weight (N, K), residual and y (B, S, N), S = H * W. A program owns BLOCK_M
pixels of an image by BLOCK_N columns. It first adds the BLOCKS rows of squares, in order, for the mean norm of all K
columns; while it walks over K it adds those of the next step's columns again (they lie in L1 by then) and multiplies
the tile of x by 1 + gamma * n on its way from shared memory to the tensor cores. One step's factors are made while the
one before is multiplied.
The published stages (4096 x 384 -> 96, 1024 x 768 -> 192, 256 x 1536 -> 384, 64 x 3072 -> 768) are 302 MFLOP each in 96
programs (the first in 192). Bytes in half: x 3.1 MB down to 0.4, weights 0.07 up to 4.7 MB; through L2 14, 14, 19 and
28 MB, and 25 KB of squares for each program (12 KB in the last). Bound by L2 in the late stages, by the chain of loads
in the early ones: 3 to 5 microseconds on an H200, by count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpkernels.triton._convnext import EPSILON, after_previous, overlap

PROGRAMS = 90  # the largest tile that gives as many is taken
TILES = ((64, 32), (32, 32), (16, 32))


@triton.jit
def _norms(squares, k, K, BLOCKS: tl.constexpr):
    total = tl.load(squares + k, k < K, 0.0)
    for block in tl.static_range(1, BLOCKS):  # a loop proper would keep the one around it from being pipelined
        total += tl.load(squares + block * K + k, k < K, 0.0)
    return tl.sqrt(total)


@triton.jit
def _kernel(
    x,
    squares,
    gamma,
    weight,
    bias,
    residual,
    y,
    pixels,
    K,
    N,
    BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALL_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows, columns = (m < pixels)[:, None], (n < N)[None, :]
    left = x + image * pixels * K + m[:, None] * K + k[None, :]
    right = weight + n[None, :] * K + k[:, None]
    squares += image * BLOCKS * K
    after_previous(OVERLAP)

    every = tl.arange(0, ALL_K)
    total = tl.zeros((ALL_K,), tl.float32)
    for block in tl.range(0, BLOCKS, loop_unroll_factor=4):
        total += tl.load(squares + block * K + every, every < K, 0.0)
    mean = tl.sum(tl.sqrt(total), 0) / K
    inverse = 1.0 / (mean + EPSILON)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    factor = 1.0 + tl.load(gamma + k, k < K, 0.0) * (_norms(squares, k, K, BLOCKS) * inverse)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        a = tl.load(left + start, rows & inside[None, :], 0.0)
        b = tl.load(right + start, columns & inside[:, None], 0.0)
        following = start + BLOCK_K + k
        ready = 1.0 + tl.load(gamma + following, following < K, 0.0) * (_norms(squares, following, K, BLOCKS) * inverse)
        a = (a.to(tl.float32) * factor[None, :]).to(b.dtype)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        factor = ready
    place = image * pixels * N + m[:, None] * N + n[None, :]
    acc += tl.load(bias + n, n < N, 0.0)[None, :]
    acc += tl.load(residual + place, rows & columns, 0.0).to(tl.float32)
    tl.store(y + place, acc, rows & columns)


def grn_linear(x: Tensor, squares: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """Launch on checked arguments; see ``lpkernels.ops.grn_linear``."""
    batch, height, width, inputs = x.shape
    pixels, outputs = height * width, weight.shape[0]
    y = x.new_empty((batch, height, width, outputs))
    for tall, wide in TILES:
        grid = triton.cdiv(outputs, wide), triton.cdiv(pixels, tall), batch
        if grid[0] * grid[1] * grid[2] >= PROGRAMS:
            break
    _kernel[grid](
        x,
        squares,
        gamma,
        weight,
        bias,
        residual,
        y,
        pixels,
        inputs,
        outputs,
        BLOCKS=squares.shape[1],
        BLOCK_M=tall,
        BLOCK_N=wide,
        BLOCK_K=32 if x.dtype == torch.float32 else 128,
        ALL_K=triton.next_power_of_2(inputs),
        num_warps=4,
        num_stages=4,
        **overlap(x),
    )
    return y
