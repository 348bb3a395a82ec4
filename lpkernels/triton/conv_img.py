"""conv_img with Triton: the library's convolution without bias, then one pass that makes the picture.

    image[b, u * h + i, u * w + j, c] = sigmoid(y[b, h, w, (c * u + i) * u + j] + bias[(c * u + i) * u + j])

y is the convolution's answer (B, H, W, 3 * u * u), dense. A program owns VALUES neighbouring values of one picture as
it lies in memory, uint8 (uH, uW, 3) or float32 (3, uH, uW): stores are whole, and the reads, a few bytes apart, come
out of the first cache. Bound by its launch: 1.6 MB in, 0.8 MB out at the published size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpkernels.triton._library import convolve

COLOURS = 3
VALUES = 1024


@triton.jit
def _picture(y, bias, image, height, width, upscale, AS_UINT8: tl.constexpr, VALUES: tl.constexpr):
    batch = tl.program_id(1).to(tl.int64)
    rows, columns = height * upscale, width * upscale
    value = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    inside = value < 3 * rows * columns
    if AS_UINT8:
        colour, pixel = value % 3, value // 3
    else:
        colour, pixel = value // (rows * columns), value % (rows * columns)
    row, column = pixel // columns, pixel % columns
    channel = (colour * upscale + row % upscale) * upscale + column % upscale
    source = (row // upscale * width + column // upscale) * (3 * upscale * upscale) + channel
    v = tl.load(y + batch * height * width * (3 * upscale * upscale) + source, inside, 0.0).to(tl.float32)
    v = tl.sigmoid(v + tl.load(bias + channel, inside, 0.0))
    place = image + batch * 3 * rows * columns + value
    if AS_UINT8:
        tl.store(place, (v * 255).to(tl.int32).to(tl.uint8), inside)
    else:
        tl.store(place, v, inside)


def conv_img(x: Tensor, weight: Tensor, bias: Tensor, upscale: int, as_uint8: bool) -> Tensor:
    """Launch on checked arguments; see ``lpkernels.ops.conv_img``."""
    y = convolve(x, weight, (1, 1))
    batch, height, width, _ = x.shape
    size = upscale * height, upscale * width
    image = (
        x.new_empty((batch, *size, COLOURS), dtype=torch.uint8)
        if as_uint8
        else x.new_empty((batch, COLOURS, *size), dtype=torch.float32)
    )
    _picture[(triton.cdiv(image[0].numel(), VALUES), batch)](
        y, bias, image, height, width, upscale, AS_UINT8=as_uint8, VALUES=VALUES
    )
    return image
