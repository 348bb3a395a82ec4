"""The second kernel of depthwise_linear: x @ W^T + b, exact GELU, and the sums of squares that GRN asks for.

x is (B, H, W, K), weight (N, K), h (B, H, W, N), squares (B, tiles, N). A program owns a tile of BLOCK_M = 8 * rows
pixels of an image (``ref.tile_height``: squares have one row per tile) by BLOCK_N columns and walks over K; GELU and
the squares are its epilogue, in float32. Each sum of squares has one writer: no atomics.
The four stages of the published model (4096 x 96 -> 384, 1024 x 192 -> 768, 256 x 384 -> 1536, 64 x 768 -> 3072) are
302 MFLOP each, 0.4 microseconds of tensor cores, in 192 to 384 programs. Bytes in half: 0.8 + 3.1 MB of activations
(half of it at each further stage), 0.07 to 4.7 MB of weights, read once for each tile of pixels. Bound by one chain of
loads, products and GELU: 2 to 3 microseconds on an H200, by count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpkernels.ref.depthwise_linear import TILE_WIDTH, tile_count, tile_height
from lpkernels.triton._convnext import after_previous, overlap

PROGRAMS = 64  # with fewer of them the columns of a program are halved


@triton.jit
def _gelu(v):
    """max(v, 0) - |v| / 2 * erfc(|v| / sqrt(2)), erfc by Abramowitz and Stegun 7.1.26: no branch, within 4e-7."""
    size = tl.abs(v)
    t = 1.0 / (1.0 + (0.3275911 * 0.7071067811865476) * size)
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    return tl.maximum(v, 0.0) - (0.5 * size) * (series * t) * tl.exp2(-0.7213475204444817 * v * v)


@triton.jit
def _kernel(
    x,
    weight,
    bias,
    h,
    squares,
    height,
    width,
    K,
    N,
    BLOCK_M: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    tile = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    per_row = tl.cdiv(width, TILE_W)
    m = tl.arange(0, BLOCK_M)
    top = tile // per_row * (BLOCK_M // TILE_W) + m // TILE_W
    left = tile % per_row * TILE_W + m % TILE_W
    pixel = (image * height + top) * width + left
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows, columns = ((top < height) & (left < width))[:, None], n < N
    inputs = x + pixel[:, None] * K + k[None, :]
    weights = weight + n[None, :] * K + k[:, None]
    after_previous(OVERLAP)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        a = tl.load(inputs + start, rows & inside[None, :], 0.0)
        b = tl.load(weights + start, columns[None, :] & inside[:, None], 0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    acc += tl.load(bias + n, columns, 0.0)[None, :]
    rounded = tl.where(rows, _gelu(acc), 0.0).to(h.dtype.element_ty)
    tl.store(h + pixel[:, None] * N + n[None, :], rounded, rows & columns[None, :])
    kept = rounded.to(tl.float32)
    tl.store(squares + (image * tl.num_programs(1) + tile) * N + n, tl.sum(kept * kept, 0), columns)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, H, W, K), weight (N, K), bias (N,) float32: h (B, H, W, N), squares (B, tiles, N) float32."""
    batch, height, width, inputs = x.shape
    outputs = weight.shape[0]
    tall = tile_height(height, width, inputs) * TILE_WIDTH
    tiles = tile_count(height, width, inputs)
    h = x.new_empty((batch, height, width, outputs))
    squares = x.new_empty((batch, tiles, outputs), dtype=torch.float32)
    wide = 64 if batch * tiles * triton.cdiv(outputs, 64) >= PROGRAMS else 32
    deep = 32 if inputs <= 128 or x.dtype == torch.float32 else 64 if inputs <= 512 else 128
    _kernel[(triton.cdiv(outputs, wide), tiles, batch)](
        x,
        weight,
        bias,
        h,
        squares,
        height,
        width,
        inputs,
        outputs,
        BLOCK_M=tall,
        TILE_W=TILE_WIDTH,
        BLOCK_N=wide,
        BLOCK_K=deep,
        num_warps=4,
        num_stages=2 if x.dtype == torch.float32 else 3,  # fits 99 KB of shared memory
        **overlap(x),
    )
    return h, squares
