"""Appearance feature extractor, F in the paper: source image -> 3D feature volume."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from lpkernels.models.blocks import DownBlock2d, ResBlock3d, SameBlock2d
from lpkernels.models.config import AppearanceFeatureExtractorConfig


class AppearanceFeatureExtractor(nn.Module):
    """Image (B, 3, H, W) in 0..1 -> feature volume (B, reshape_channel, reshape_depth, H/4, W/4).

    H/4 and W/4 are for the published two down blocks; a remainder of the division is cut off.
    """

    def __init__(self, config: AppearanceFeatureExtractorConfig) -> None:
        super().__init__()
        self.volume_shape = (config.reshape_channel, config.reshape_depth)
        widths = [config.block_expansion]
        for _ in range(config.num_down_blocks):
            widths.append(min(config.max_features, widths[-1] * 2))
        self.first = SameBlock2d(config.image_channel, widths[0])
        self.down_blocks = nn.ModuleList(DownBlock2d(a, b) for a, b in pairwise(widths))
        self.second = nn.Conv2d(widths[-1], config.max_features, kernel_size=1)
        self.resblocks_3d = nn.Sequential()
        for i in range(config.num_resblocks):
            self.resblocks_3d.add_module(f"3dr{i}", ResBlock3d(config.reshape_channel))

    def forward(self, source_image: Tensor) -> Tensor:
        out = self.first(source_image)
        for block in self.down_blocks:
            out = block(out)
        return self.resblocks_3d(self.second(out).unflatten(1, self.volume_shape))
