"""The first kernel of depthwise_linear: 7x7 per channel, bias, layer norm over channels, channels-last.

A program owns BLOCK_RUNS runs of RUN neighbouring pixels of a row, with all their channels, so that the norm stays in
registers. Of each of the 7 rows around them it reads RUN + 6 pixels and 7 taps for 7 * RUN products: with RUN = 4 that
is 17 reads for 28 products instead of 56. Small pictures get shorter runs, or too few threads would be busy.
Bytes: x in, y out (0.8 MB each at 64x64x96 in half, half of it at each further stage), 49 C weights; 98 FLOP an
element (38.5 MFLOP at 64x64x96). Bound by loads out of L1, conversions and products: at 64x64x96 119 loads of 16 bytes
among 3500 instructions of a thread, four warps a multiprocessor: 2 microseconds on an H200, by count.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpkernels.triton._convnext import EPSILON, after_previous, overlap

THREADS = 128
VECTOR = 8  # channels of a thread: 16 bytes of halves
RUNS = ((4, 65536), (2, 32768), (1, 0))  # pixels of a run, from how many vectors of x on


@triton.jit
def _normalized(sums, bias, exists, C: tl.constexpr):
    v = sums + bias
    mean = tl.sum(v, 1) / C
    centred = tl.where(exists, v - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    return centred * (1.0 / tl.sqrt(variance + EPSILON))[:, None]


@triton.jit
def _tap(weight, exists):
    return tl.load(weight, exists, 0.0).to(tl.float32)


@triton.jit
def _kernel(
    x,
    weight,
    bias,
    y,
    runs,
    height,
    width,
    C: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_RUNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    run = (tl.program_id(0) * BLOCK_RUNS + tl.arange(0, BLOCK_RUNS))[:, None]
    per_row = tl.cdiv(width, RUN)
    row = run // per_row
    left = run % per_row * RUN
    top = row % height
    # every run loads the taps itself: one row of them for all would change its layout through shared memory
    c = tl.zeros((BLOCK_RUNS, 1), tl.int32) + tl.arange(0, BLOCK_C)[None, :]
    exists = c < C
    valid = exists & (run < runs)
    place = (row.to(tl.int64) * width + left) * C + c
    after_previous(OVERLAP)

    sums = tl.zeros((BLOCK_RUNS, BLOCK_C), tl.float32)
    sums1 = sums
    sums2 = sums
    sums3 = sums
    for kh in tl.static_range(7):  # unrolled, so that the loads of all rows are under way at once
        tap = weight + kh * 7 * C + c
        w0, w1, w2, w3 = _tap(tap, exists), _tap(tap + C, exists), _tap(tap + 2 * C, exists), _tap(tap + 3 * C, exists)
        w4, w5, w6 = _tap(tap + 4 * C, exists), _tap(tap + 5 * C, exists), _tap(tap + 6 * C, exists)
        w = (w0, w1, w2, w3, w4, w5, w6)
        inside = valid & (top + kh >= 3) & (top + kh < height + 3)
        pixels = x + place + (kh - 3) * width * C
        for column in tl.static_range(RUN + 6):
            mask = inside & (left + column >= 3) & (left + column < width + 3)
            v = tl.load(pixels + (column - 3) * C, mask, 0.0).to(tl.float32)
            if column < 7:
                sums = tl.fma(v, w[column], sums)
            if RUN > 1 and column >= 1 and column < 8:
                sums1 = tl.fma(v, w[column - 1], sums1)
            if RUN > 2 and column >= 2 and column < 9:
                sums2 = tl.fma(v, w[column - 2], sums2)
            if RUN > 2 and column >= 3:
                sums3 = tl.fma(v, w[column - 3], sums3)

    b = tl.load(bias + c, exists, 0.0)
    out = y + place
    tl.store(out, _normalized(sums, b, exists, C), valid)
    if RUN > 1:
        tl.store(out + C, _normalized(sums1, b, exists, C), valid & (left + 1 < width))
    if RUN > 2:
        tl.store(out + 2 * C, _normalized(sums2, b, exists, C), valid & (left + 2 < width))
        tl.store(out + 3 * C, _normalized(sums3, b, exists, C), valid & (left + 3 < width))


def depthwise_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (B, H, W, C), weight (7, 7, C) float32, bias (C,) float32: the normalised (B, H, W, C)."""
    batch, height, width, channels = x.shape
    y = x.new_empty(x.shape)
    block = triton.next_power_of_2(channels)
    vectors = batch * height * width * block // VECTOR
    run = next(run for run, least in RUNS if vectors >= least)
    rows = max(1, THREADS * VECTOR // block)
    runs = batch * height * triton.cdiv(width, run)
    _kernel[(triton.cdiv(runs, rows),)](
        x,
        weight,
        bias,
        y,
        runs,
        height,
        width,
        C=channels,
        RUN=run,
        BLOCK_RUNS=rows,
        BLOCK_C=block,
        num_warps=8 if block >= 1024 else 4,
        **overlap(x),
    )
    return y
