"""F for the fused model: it runs once per source, so it is the baseline module in channels-last, BatchNorm folded."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lpkernels.fused import _weights
from lpkernels.models.appearance_feature_extractor import AppearanceFeatureExtractor
from lpkernels.models.blocks import DownBlock2d, ResBlock3d, SameBlock2d


class FusedAppearanceFeatureExtractor(nn.Module):
    """The appearance feature extractor F from a baseline's weights; the baseline is left as it is.

    Args:
        baseline: in eval mode, float32 parameters; the layers are made on its device.
        dtype: of activations and weights: float16, bfloat16 or float32.
    """

    def __init__(self, baseline: AppearanceFeatureExtractor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = copy.deepcopy(baseline)
        for block in self.network.modules():
            if isinstance(block, SameBlock2d | DownBlock2d):
                _fold(block, "conv", "norm")
            elif isinstance(block, ResBlock3d):  # its first norm stands before the first conv
                _fold(block, "conv1", "norm2")
        self.network.to(dtype).requires_grad_(False)
        for parameter in self.network.parameters():
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.dim())
            if layout is not None:
                parameter.data = parameter.data.contiguous(memory_format=layout)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W), RGB in 0..1 -> feature volume (B, C, D, H/4, W/4), float32, contiguous."""
        image = image.to(self.dtype, memory_format=torch.channels_last)
        return self.network(image).float().contiguous()


def _fold(block: nn.Module, conv_name: str, norm_name: str) -> None:
    """Put the BatchNorm after a conv into it; an identity takes its place."""
    conv = block.get_submodule(conv_name)
    weight, bias = _weights.folded(conv, block.get_submodule(norm_name))
    conv.weight, conv.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    setattr(block, norm_name, nn.Identity())
