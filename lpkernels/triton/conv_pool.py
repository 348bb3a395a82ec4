"""conv_pool with Triton: the library's convolution without bias, then bias, ReLU and the 2 x 2 mean in one pass.

    out[r, w, o] = mean over i, j in (0, 1) of max(y[2 r + i, 2 w + j, o] + bias[o], 0)

y is the convolution's answer as rows of pixels (B * D * H, W, O), dense; out's rows are r = (b * D + d) * (H / 2) + h,
so that 2 r and 2 r + 1 are the two rows of y below it whatever b and d. A program owns PIXELS answers by CHANNELS
channels. Bound by memory: y in, a quarter of it out.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lpkernels._channels_last import pixel_stride
from lpkernels.triton._library import convolve

TILE = 2048  # answers of a program: 16 for each of 128 threads, each of four values


@triton.jit
def _bias_relu_pool(y, bias, out, pixels, width, channels, out_stride, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """``pixels`` and ``width`` are those of ``out``."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    shift = tl.load(bias + channel, channel < channels, 0.0)[None, :]
    corner = pixel // width * (4 * width) + pixel % width * 2
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            source = y + (corner + i * 2 * width + j).to(tl.int64)[:, None] * channels + channel[None, :]
            v = tl.load(source, mask, 0.0).to(tl.float32) + shift
            total += tl.where(v <= 0, 0.0, v)  # NaN stays NaN
    place = out + pixel.to(tl.int64)[:, None] * out_stride + channel[None, :]
    tl.store(place, (0.25 * total).to(out.dtype.element_ty), mask)


def conv_pool(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Launch on checked arguments; see ``lpkernels.ops.conv_pool``."""
    y = convolve(x, weight, (1, 1, 1))
    channels = y.shape[-1]
    pixels = out[..., 0].numel()
    wide = min(64, triton.next_power_of_2(channels))
    tall = TILE // wide
    _bias_relu_pool[(triton.cdiv(pixels, tall), triton.cdiv(channels, wide))](
        y, bias, out, pixels, out.shape[-2], channels, pixel_stride(out), PIXELS=tall, CHANNELS=wide
    )
