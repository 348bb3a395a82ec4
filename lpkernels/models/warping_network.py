"""Warping module, W in the paper: warps the source feature volume from source to driving keypoints."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lpkernels.models.blocks import SameBlock2d
from lpkernels.models.config import WarpingModuleConfig
from lpkernels.models.dense_motion import DenseMotionNetwork


class WarpingNetwork(nn.Module):
    """Feature volume and two keypoint sets -> the 2D feature that the generator decodes."""

    def __init__(self, config: WarpingModuleConfig) -> None:
        super().__init__()
        width = config.block_expansion * 2**config.num_down_blocks
        self.dense_motion_network = DenseMotionNetwork(
            config.dense_motion_params,
            num_kp=config.num_kp,
            feature_channel=config.reshape_channel,
            estimate_occlusion_map=config.estimate_occlusion_map,
        )
        self.third = SameBlock2d(config.max_features, width, lrelu=True)
        self.fourth = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, feature_3d: Tensor, kp_driving: Tensor, kp_source: Tensor) -> dict[str, Tensor | None]:
        """Feature volume (B, C, D, H, W), keypoints (B, K, 3) in normalised coordinates -> dict.

        ``out`` (B, 4 * block_expansion, H, W), ``occlusion_map`` (B, 1, H, W) in 0..1 or None when it is not
        estimated, ``deformation`` (B, D, H, W, 3) in normalised (x, y, z).
        """
        motion = self.dense_motion_network(feature=feature_3d, kp_driving=kp_driving, kp_source=kp_source)
        warped = F.grid_sample(feature_3d, motion["deformation"], align_corners=False)
        out = self.fourth(self.third(warped.flatten(1, 2)))
        occlusion_map = motion.get("occlusion_map")
        if occlusion_map is not None:
            out = out * occlusion_map
        return {"occlusion_map": occlusion_map, "deformation": motion["deformation"], "out": out}
