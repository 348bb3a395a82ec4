"""SPADE decoder, G in the paper: warped feature -> image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpkernels.models.blocks import SPADEResnetBlock
from lpkernels.models.config import SPADEGeneratorConfig

NUM_MIDDLE_BLOCKS = 6


class SPADEDecoder(nn.Module):
    """Feature (B, C, H, W) -> image (B, 3, 4H * upscale, 4W * upscale) in 0..1; the feature steers every SPADE."""

    def __init__(self, config: SPADEGeneratorConfig) -> None:
        super().__init__()
        label = config.feature_channels
        self.fc = nn.Conv2d(label, 2 * label, kernel_size=3, padding=1)
        for i in range(NUM_MIDDLE_BLOCKS):
            self.add_module(f"G_middle_{i}", SPADEResnetBlock(2 * label, 2 * label, label))
        self.up_0 = SPADEResnetBlock(2 * label, label, label)
        self.up_1 = SPADEResnetBlock(label, config.out_channels, label)
        self.up = nn.Upsample(scale_factor=2)
        self.conv_img: nn.Module
        if config.upscale == 1:
            self.conv_img = nn.Conv2d(config.out_channels, 3, kernel_size=3, padding=1)
        else:
            conv = nn.Conv2d(config.out_channels, 3 * config.upscale**2, kernel_size=3, padding=1)
            self.conv_img = nn.Sequential(conv, nn.PixelShuffle(config.upscale))

    def forward(self, feature: Tensor) -> Tensor:
        x = self.fc(feature)
        for i in range(NUM_MIDDLE_BLOCKS):
            x = self.get_submodule(f"G_middle_{i}")(x, feature)
        x = self.up_0(self.up(x), feature)
        x = self.up_1(self.up(x), feature)
        return torch.sigmoid(self.conv_img(F.leaky_relu(x, 0.2)))
