"""spade_conv with Triton: the library's convolution without bias, then one pass that modulates and activates.

    out[b, p, c] = act((x[b, p or its half-size pixel, c] - mean[b, c]) * rstd[b, c] * gamma1[b, p, c] + beta[b, p, c])

y is the convolution's answer (B, S, N), dense, S = H * W. With beta N = 2C and its columns alternate: BLOCK gammas, the
BLOCK betas of the same channels, ...; else N = C. x and out have pixel strides of their own. A program owns PIXELS
pixels of one image by CHANNELS channels. Bound by memory: y and x in, out out; a half-size x comes out of the caches.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpkernels import ref, rewrites
from lpkernels._channels_last import pixel_stride
from lpkernels.triton._library import convolve

TILE = 4096  # elements of a program: 32 for each of 128 threads, of each of three operands


@triton.jit
def _modulate(
    y,
    bias,
    x,
    stats,
    out,
    slope,
    pixels,
    width,
    channels,
    x_stride,
    out_stride,
    BETA: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    mask = (pixel < pixels)[:, None] & exists[None, :]
    if BETA:
        columns, gamma_column = 2 * channels, channel // BLOCK * (2 * BLOCK) + channel % BLOCK
    else:
        columns, gamma_column = channels, channel
    row = y + image * pixels * columns + pixel[:, None] * columns
    gamma = tl.load(row + gamma_column[None, :], mask, 0.0).to(tl.float32)
    gamma += tl.load(bias + gamma_column, exists, 0.0)[None, :]
    if HALF:
        source = pixel // width // 2 * (width // 2) + pixel % width // 2
        first = image * (pixels // 4) * x_stride
    else:
        source = pixel
        first = image * pixels * x_stride
    v = tl.load(x + first + source[:, None] * x_stride + channel[None, :], mask, 0.0).to(tl.float32)
    statistic = stats + (image * channels + channel) * 2
    mean, rstd = tl.load(statistic, exists, 0.0), tl.load(statistic + 1, exists, 0.0)
    v = (v - mean[None, :]) * rstd[None, :] * gamma
    if BETA:
        v += tl.load(row + (gamma_column + BLOCK)[None, :], mask, 0.0).to(tl.float32)
        v += tl.load(bias + gamma_column + BLOCK, exists, 0.0)[None, :]
    v = tl.where(v > 0, v, slope * v)
    place = image * pixels * out_stride + pixel[:, None] * out_stride + channel[None, :]
    tl.store(out + place, v.to(out.dtype.element_ty), mask)


def spade_conv(
    actv: Tensor, weight: Tensor, bias: Tensor, x: Tensor, stats: Tensor, negative_slope: float, out: Tensor
) -> None:
    """Launch on checked arguments; see ``lpkernels.ops.spade_conv``."""
    y = convolve(actv, weight, (1, 1))
    stats = ref.whole_stats(stats)
    batch, height, width, channels = out.shape
    wide = min(64, triton.next_power_of_2(channels))
    tall = TILE // wide
    pixels = height * width
    _modulate[(triton.cdiv(pixels, tall), triton.cdiv(channels, wide), batch)](
        y,
        bias,
        x,
        stats,
        out,
        negative_slope,
        pixels,
        width,
        channels,
        pixel_stride(x),
        pixel_stride(out),
        BETA=y.shape[-1] != channels,
        HALF=x.shape[1] != height,
        BLOCK=rewrites.gamma_beta_block(channels),
        PIXELS=tall,
        CHANNELS=wide,
    )
