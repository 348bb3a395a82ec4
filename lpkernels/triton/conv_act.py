"""conv_act with Triton: the library's convolution without bias, then one pass for all that follows it.

    out[b, p, o] = act(y[b, p, o] + bias[o] + residual[b, p or its half-size pixel, o]) * gain[b, p]

y is the convolution's answer (B, S, O), dense, S = [D *] H * W; out and residual have pixel strides of their own. A
program owns PIXELS pixels of one image by CHANNELS channels. With statistics it also leaves mean and M2, the sum of
squared differences from that mean, of its pixels: (B, blocks, 2, O); a second kernel combines the blocks in a fixed
order (Chan et al. 1979), so that the answer is stable and the same in every run. Bound by memory: y and residual in,
out out.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpkernels import ref
from lpkernels._channels_last import pixel_stride
from lpkernels.triton._library import convolve

TILE = 4096  # elements of a program: 32 for each of 128 threads
CHUNK = 1024  # blocks of pixels that are combined at once
EPS = tl.constexpr(1e-5)  # of InstanceNorm


@triton.jit
def _epilogue(
    y,
    bias,
    residual,
    gain,
    out,
    partial,
    slope,
    pixels,
    width,
    channels,
    residual_stride,
    out_stride,
    HALF: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    block, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    pixel = block * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = pixel < pixels
    mask = inside[:, None] & (channel < channels)[None, :]
    v = tl.load(y + image * pixels * channels + pixel[:, None] * channels + channel[None, :], mask, 0.0).to(tl.float32)
    v += tl.load(bias + channel, channel < channels, 0.0)[None, :]
    if residual is not None:
        if HALF:
            source = pixel // width // 2 * (width // 2) + pixel % width // 2
            first = image * (pixels // 4) * residual_stride
        else:
            source = pixel
            first = image * pixels * residual_stride
        v += tl.load(residual + first + source[:, None] * residual_stride + channel[None, :], mask, 0.0).to(tl.float32)
    v = tl.where(v > 0, v, slope * v)
    if gain is not None:
        v *= tl.load(gain + image * pixels + pixel, inside, 0.0)[:, None]
    place = image * pixels * out_stride + pixel[:, None] * out_stride + channel[None, :]
    tl.store(out + place, v.to(out.dtype.element_ty), mask)
    if partial is not None:
        count = tl.minimum(pixels - block * PIXELS, PIXELS).to(tl.float32)
        mean = tl.sum(tl.where(mask, v, 0.0), 0) / count
        difference = tl.where(mask, v - mean[None, :], 0.0)
        row = partial + (image * tl.num_programs(0) + block) * 2 * channels + channel
        tl.store(row, mean, channel < channels)
        tl.store(row + channels, tl.sum(difference * difference, 0), channel < channels)


@triton.jit
def _combine(
    partial, stats, blocks, pixels, channels, PIXELS: tl.constexpr, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(1).to(tl.int64)
    mean = tl.zeros([CHANNELS], tl.float32)
    m2 = tl.zeros([CHANNELS], tl.float32)
    total = 0.0
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        mask = (block < blocks)[:, None] & (channel < channels)[None, :]
        count = tl.maximum(tl.minimum(pixels - block * PIXELS, PIXELS), 0).to(tl.float32)
        row = partial + (image * blocks + block[:, None]) * 2 * channels + channel[None, :]
        block_mean = tl.load(row, mask, 0.0)
        here = tl.sum(count, 0)
        chunk_mean = tl.sum(block_mean * count[:, None], 0) / here
        away = block_mean - chunk_mean[None, :]
        chunk_m2 = tl.sum(tl.load(row + channels, mask, 0.0) + away * away * count[:, None], 0)
        shift = chunk_mean - mean
        m2 += chunk_m2 + shift * shift * (total * here / (total + here))
        mean += shift * (here / (total + here))
        total += here
    row = stats + (image * channels + channel) * 2
    tl.store(row, mean, channel < channels)
    tl.store(row + 1, 1.0 / tl.sqrt(m2 / pixels + EPS), channel < channels)


def conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    negative_slope: float,
    residual: Tensor | None,
    gain: Tensor | None,
    out: Tensor,
    stats: Tensor | None,
) -> None:
    """Launch on checked arguments; see ``lpkernels.ops.conv_act``."""
    y = convolve(x, weight, tuple(taps // 2 for taps in weight.shape[1:-1]))
    batch, channels = y.shape[0], y.shape[-1]
    pixels = y[0, ..., 0].numel()
    wide = min(64, triton.next_power_of_2(channels))
    tall = TILE // wide
    blocks = triton.cdiv(pixels, tall)
    in_parts = stats is not None and stats.dim() == 4
    partial = None if stats is None or in_parts else bias.new_empty(batch, blocks, 2, channels)
    _epilogue[(blocks, triton.cdiv(channels, wide), batch)](
        y,
        bias,
        residual,
        gain,
        out,
        partial,
        negative_slope,
        pixels,
        y.shape[-2],
        channels,
        0 if residual is None else pixel_stride(residual),
        pixel_stride(out),
        HALF=residual is not None and residual.shape != y.shape,
        PIXELS=tall,
        CHANNELS=wide,
    )
    if stats is not None and in_parts:
        stats.copy_(ref.channel_parts(out.float(), stats.shape[1]))
    elif stats is not None:
        _combine[(triton.cdiv(channels, 8), batch)](
            partial,
            stats,
            blocks,
            pixels,
            channels,
            PIXELS=tall,
            BLOCKS=min(CHUNK, triton.next_power_of_2(blocks)),
            CHANNELS=8,
            num_warps=8,
        )
