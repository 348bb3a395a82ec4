"""Motion extractor, M in the paper: image -> canonical keypoints, head pose, expression, translation, scale."""

from __future__ import annotations

from torch import Tensor, nn

from lpkernels.models.config import MotionExtractorConfig
from lpkernels.models.convnextv2 import ConvNeXtV2


class MotionExtractor(nn.Module):
    """Image (B, 3, H, W) in 0..1 -> dict of raw heads, see ``ConvNeXtV2``."""

    def __init__(self, config: MotionExtractorConfig) -> None:
        super().__init__()
        self.detector = ConvNeXtV2(config)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.detector(x)
