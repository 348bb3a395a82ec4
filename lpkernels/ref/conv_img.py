"""conv_img as the original decoder ends: conv 3x3, pixel shuffle, sigmoid, and the picture's 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels._channels_last import pixels, planes


def conv_img(x: Tensor, weight: Tensor, bias: Tensor, upscale: int, as_uint8: bool = False) -> Tensor:
    """The decoder's last layers, in FP32 (FP64 for FP64 inputs); see ``lpkernels.ops.conv_img``."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    return conv_img_in(compute, x, weight, bias, upscale, as_uint8)


def conv_img_in(
    compute: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor, upscale: int, as_uint8: bool = False
) -> Tensor:
    """The same with the convolution in the dtype ``compute`` and the sigmoid at least in FP32."""
    columns = F.conv2d(planes(x.to(compute)), planes(weight.to(compute)), bias.to(compute), padding=1)
    wide = columns if compute == torch.float64 else columns.float()
    image = torch.sigmoid(F.pixel_shuffle(wide, upscale))
    if not as_uint8:
        return image.contiguous()
    return pixels((image * 255).clamp(0, 255).to(torch.uint8)).contiguous()
