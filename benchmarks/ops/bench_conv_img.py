"""conv_img: the decoder's last convolution, pixel shuffle and sigmoid, to 8 bits and to floating point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random, feature_size
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 1)  # activations and weight; the bias stays FP32
EIGHT_BIT_FLOOR = 5e-3  # relative: about one level where truncation falls to either side


def published(x: Tensor, weight: Tensor, bias: Tensor, upscale: int, as_uint8: bool) -> Tensor:
    """The decoder's last lines in the inputs' own precision, and the 8-bit picture made of their answer."""
    columns = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias.to(x.dtype), padding=1)
    image = torch.sigmoid(F.pixel_shuffle(columns, upscale))
    return (image.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous() if as_uint8 else image


def subjects(context: Context) -> Iterator[Subject]:
    """Both kinds of picture at each batch."""
    decoder, size = context.config.spade_generator, 4 * feature_size(context.config)
    channels, upscale = decoder.out_channels, decoder.upscale
    outputs = 3 * upscale**2
    for batch in context.batches:
        for as_uint8 in (True, False):

            def inputs(seed: int, batch: int = batch, as_uint8: bool = as_uint8) -> tuple[Any, ...]:
                random = Random(seed, context.device)
                x = F.leaky_relu(random.normal(batch, size, size, channels), 0.2)
                weight = random.normal(outputs, 3, 3, channels, scale=2 * (9 * channels) ** -0.5)
                return x, weight, random.normal(outputs), upscale, as_uint8

            values = batch * size * size * outputs
            yield Subject(
                level="ops",
                name="conv_img",
                shape=f"{channels} -> {outputs} at {size}x{size}, {'uint8' if as_uint8 else 'float32'}",
                batch=batch,
                inputs=inputs,
                reference=ref.conv_img,
                providers=[
                    *torch_providers(published, LOWERED, context.device),
                    *op_providers("conv_img", LOWERED, context.device),
                ],
                elements=batch * size * size * channels + outputs * 9 * channels,
                fixed_bytes=values if as_uint8 else 4 * values,
                flops=2 * values * 9 * channels,
                floor=EIGHT_BIT_FLOOR if as_uint8 else 0.0,
                kernel=True,
            )
