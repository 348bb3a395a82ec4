"""instance_norm_stats with Triton: mean and M2 of blocks of pixels, then the blocks combined in a fixed order.

x is (B, S, C) with a pixel stride of its own, S = H * W. A program of the first kernel owns PIXELS pixels of one image
by CHANNELS channels, which it holds in registers: mean first, then M2, the sum of squared differences from that mean.
Its answers, (B, blocks, 2, C) float32, are combined by conv_act's second kernel. Bound by memory: x in; at 64x64 by the
two launches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpkernels._channels_last import pixel_stride
from lpkernels.triton.conv_act import _combine

TILE = 4096  # elements of a program: 32 for each of 128 threads


@triton.jit
def _blocks(x, partial, pixels, channels, stride, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    block, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    pixel = block * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    mask = (pixel < pixels)[:, None] & exists[None, :]
    place = image * pixels * stride + pixel[:, None] * stride + channel[None, :]
    v = tl.load(x + place, mask, 0.0).to(tl.float32)
    count = tl.minimum(pixels - block * PIXELS, PIXELS).to(tl.float32)
    mean = tl.sum(v, 0) / count
    difference = tl.where(mask, v - mean[None, :], 0.0)
    row = partial + (image * tl.num_programs(0) + block) * 2 * channels + channel
    tl.store(row, mean, exists)
    tl.store(row + channels, tl.sum(difference * difference, 0), exists)


def instance_norm_stats(x: Tensor) -> Tensor:
    """Launch on checked arguments; see ``lpkernels.ops.instance_norm_stats``."""
    batch, height, width, channels = x.shape
    pixels = height * width
    wide = min(64, triton.next_power_of_2(channels))
    tall = TILE // wide
    blocks = triton.cdiv(pixels, tall)
    partial = x.new_empty((batch, blocks, 2, channels), dtype=torch.float32)
    stats = x.new_empty((batch, channels, 2), dtype=torch.float32)
    _blocks[(blocks, triton.cdiv(channels, wide), batch)](
        x, partial, pixels, channels, pixel_stride(x), PIXELS=tall, CHANNELS=wide
    )
    _combine[(triton.cdiv(channels, 8), batch)](
        partial,
        stats,
        blocks,
        pixels,
        channels,
        PIXELS=tall,
        BLOCKS=min(1024, triton.next_power_of_2(blocks)),
        CHANNELS=8,
    )
    return stats
