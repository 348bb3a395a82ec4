"""occlusion_head with Triton: one batched matrix product, then the sum of its columns at 49 shifted places.

    columns[b, d, 7 * kh + kw, h, w] = sum_c weight[7 * kh + kw, d, c] * x[b, d, h, w, c]
    map[b, h, w] = sigmoid(bias + sum_{d, kh, kw} columns[b, d, 7 * kh + kw, h + kh - 3, w + kw - 3])

columns are (B, D, 56, S), float32, S = H * W, so that neighbouring pixels lie next to each other for every tap. A
program owns PIXELS pixels: it adds up the depths of a tile of 49 taps by PIXELS pixels, then the taps, in a fixed
order. Every value of columns is needed once. Bound by memory: x in, columns out and, out of the L2, in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KERNEL = tl.constexpr(7)
PIXELS = 16  # 256 programs at 64x64, to keep many loads under way


@triton.jit
def _shifted_sum(columns, bias, out, depth, height, width, rows, TAPS: tl.constexpr, PIXELS: tl.constexpr):
    image, pixels = tl.program_id(1).to(tl.int64), height * width
    tap = tl.arange(0, TAPS)[:, None]
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[None, :]
    h = pixel // width + tap // KERNEL - KERNEL // 2
    w = pixel % width + tap % KERNEL - KERNEL // 2
    inside = (tap < KERNEL * KERNEL) & (pixel < pixels) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
    place = columns + image * depth * rows * pixels + tap * pixels + h * width + w
    total = tl.zeros([TAPS, PIXELS], tl.float32)
    for _ in tl.range(0, depth, loop_unroll_factor=4):
        total += tl.load(place, inside, 0.0)
        place += rows * pixels
    logit = tl.sum(total, 0) + tl.load(bias)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    tl.store(out + image * pixels + pixel, tl.sigmoid(logit), pixel < pixels)


def occlusion_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Launch on checked arguments; see ``lpkernels.ops.occlusion_head``."""
    batch, depth, height, width, _ = x.shape
    rows = weight.shape[0]
    taps = weight.transpose(0, 1).expand(batch, -1, -1, -1).flatten(0, 1)
    columns = _product(taps, x.flatten(2, 3).flatten(0, 1).transpose(1, 2))
    out = x.new_empty((batch, height, width), dtype=torch.float32)
    _shifted_sum[(triton.cdiv(height * width, PIXELS), batch)](
        columns, bias, out, depth, height, width, rows, TAPS=triton.next_power_of_2(rows), PIXELS=PIXELS, num_warps=8
    )
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a @ b in float32, which cuBLAS gives without a rounding to half in between."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())
