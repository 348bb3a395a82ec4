"""norm_downsample with Triton: layer norm over channels without affine, then conv 2x2 stride 2, channels-last.

A program owns BLOCK_M pixels of the answer by BLOCK_N of its channels. First it takes mean and deviation of the
4 * BLOCK_M pixels it reads, chunk by chunk (mean and squared differences of each, combined, so that a mean much larger
than the deviation does no harm); then it walks over K = 4 taps * C and normalises each tile on its way to the tensor
cores. The published steps (64x64x96 -> 192, 32x32x192 -> 384, 16x16x384 -> 768) are 151 MFLOP each in 96 programs;
bytes in half: 0.8, 0.4, 0.2 MB of pixels, 0.15, 0.6, 2.4 MB of weights. Bound by two chains of loads: 3 to 4
microseconds on an H200, by count.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpkernels.triton._convnext import EPSILON, after_previous, overlap

PROGRAMS = 90  # the largest tile that gives as many is taken
TILES = ((64, 64), (32, 64), (32, 32), (16, 32))


@triton.jit
def _tap(values, BLOCK_M: tl.constexpr):
    """One number per (pixel, tap), (4 * BLOCK_M,), as one vector (BLOCK_M,) per tap."""
    even, odd = tl.split(tl.reshape(values, (BLOCK_M, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _stats(x, place, exists, channels, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """Mean and 1 / sqrt(var + eps) of the pixels that begin at ``place``."""
    mean = tl.zeros((ROWS,), tl.float32)
    m2 = tl.zeros((ROWS,), tl.float32)
    c = tl.arange(0, CHUNK)
    for start in range(0, channels, CHUNK):
        count = tl.minimum(channels - start, CHUNK).to(tl.float32)
        mask = exists[:, None] & (c < channels - start)[None, :]
        v = tl.load(x + (place + start)[:, None] + c[None, :], mask, 0.0).to(tl.float32)
        own = tl.sum(v, 1) / count
        centred = tl.where(mask, v - own[:, None], 0.0)
        difference = own - mean
        share = count / (start + count)
        mean += difference * share
        m2 += tl.sum(centred * centred, 1) + difference * difference * (start * share)
    return mean, 1.0 / tl.sqrt(m2 / channels + EPSILON)


@triton.jit
def _kernel(
    x,
    weight,
    bias,
    y,
    rows,
    height,
    width,
    channels,
    N,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    CHUNK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    out_height, out_width = height // 2, width // 2
    r = tl.program_id(1) * BLOCK_M + tl.arange(0, 4 * BLOCK_M) // 4
    tap = tl.arange(0, 4 * BLOCK_M) % 4
    top = r // out_width // out_height * height + r // out_width % out_height * 2
    place = ((top + tap // 2).to(tl.int64) * width + r % out_width * 2 + tap % 2) * channels
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    corner = (m // out_width // out_height * height + m // out_width % out_height * 2).to(tl.int64) * width
    corner = (corner + m % out_width * 2) * channels
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    after_previous(OVERLAP)

    mean, rstd = _stats(x, place, r < rows, channels, 4 * BLOCK_M, CHUNK)
    mean0, mean1, mean2, mean3 = _tap(mean, BLOCK_M)
    rstd0, rstd1, rstd2, rstd3 = _tap(rstd, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    chunks = tl.cdiv(channels, BLOCK_C)
    for step in range(4 * chunks):
        t = step // chunks
        start = step % chunks * BLOCK_C
        inside = c < channels - start
        left = x + corner[:, None] + (t // 2 * width + t % 2) * channels + start + c[None, :]
        right = weight + (n[None, :] * 4 + t) * channels + start + c[:, None]
        a = tl.load(left, (m < rows)[:, None] & inside[None, :], 0.0)
        b = tl.load(right, (n < N)[None, :] & inside[:, None], 0.0)
        centre = tl.where(t == 0, mean0, tl.where(t == 1, mean1, tl.where(t == 2, mean2, mean3)))
        scale = tl.where(t == 0, rstd0, tl.where(t == 1, rstd1, tl.where(t == 2, rstd2, rstd3)))
        normalized = (a.to(tl.float32) - centre[:, None]) * scale[:, None]  # beyond the channels b is zero
        acc = tl.dot(normalized.to(b.dtype), b, acc, input_precision="ieee")
    acc += tl.load(bias + n, n < N, 0.0)[None, :]
    out = y + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(out, acc, (m < rows)[:, None] & (n < N)[None, :])


def norm_downsample(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Launch on checked arguments; see ``lpkernels.ops.norm_downsample``."""
    batch, height, width, channels = x.shape
    outputs = weight.shape[0]
    y = x.new_empty((batch, height // 2, width // 2, outputs))
    rows = batch * (height // 2) * (width // 2)
    for tall, wide in TILES:
        grid = triton.cdiv(outputs, wide), triton.cdiv(rows, tall)
        if grid[0] * grid[1] >= PROGRAMS:
            break
    _kernel[grid](
        x,
        weight,
        bias,
        y,
        rows,
        height,
        width,
        channels,
        outputs,
        BLOCK_M=tall,
        BLOCK_N=wide,
        BLOCK_C=32 if x.dtype == torch.float32 or channels <= 96 else 64 if channels <= 192 else 128,
        CHUNK=64,
        num_warps=8 if tall == 64 else 4,
        num_stages=3,
        **overlap(x),
    )
    return y
