"""Dense motion network: sparse keypoint motion -> dense deformation and occlusion map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpkernels.models.blocks import Hourglass, kp2gaussian, make_coordinate_grid
from lpkernels.models.config import DenseMotionConfig

KP_VARIANCE = 0.01


class DenseMotionNetwork(nn.Module):
    """Estimates, per voxel, which keypoint's motion to follow (one more for the background) and what is occluded."""

    def __init__(
        self, config: DenseMotionConfig, *, num_kp: int, feature_channel: int, estimate_occlusion_map: bool
    ) -> None:
        super().__init__()
        self.num_kp = num_kp
        self.hourglass = Hourglass(
            config.block_expansion, (num_kp + 1) * (config.compress + 1), config.num_blocks, config.max_features
        )
        filters = self.hourglass.out_filters
        self.mask = nn.Conv3d(filters, num_kp + 1, kernel_size=7, padding=3)
        self.compress = nn.Conv3d(feature_channel, config.compress, kernel_size=1)
        self.norm = nn.BatchNorm3d(config.compress)
        self.occlusion = (
            nn.Conv2d(filters * config.reshape_depth, 1, kernel_size=7, padding=3) if estimate_occlusion_map else None
        )

    def create_sparse_motions(self, feature: Tensor, kp_driving: Tensor, kp_source: Tensor) -> Tensor:
        """Where each motion samples the volume: (B, 1+K, D, H, W, 3), the identity first, then one shift per keypoint.

        Keypoint k moves voxel p to p - kp_driving_k + kp_source_k; the result has the keypoints' dtype.
        """
        depth, height, width = feature.shape[2:]
        grid = make_coordinate_grid((depth, height, width), kp_source)
        shifted = grid - kp_driving[:, :, None, None, None, :] + kp_source[:, :, None, None, None, :]
        identity = grid.expand(shifted.shape[0], 1, *grid.shape)
        return torch.cat([identity, shifted], dim=1)

    def create_deformed_feature(self, feature: Tensor, sparse_motions: Tensor) -> Tensor:
        """``feature`` (B, C, D, H, W) sampled by every motion: (B, 1+K, C, D, H, W)."""
        repeated = feature.unsqueeze(1).expand(-1, self.num_kp + 1, -1, -1, -1, -1).flatten(0, 1)
        sampled = F.grid_sample(repeated, sparse_motions.flatten(0, 1), align_corners=False)
        return sampled.unflatten(0, (-1, self.num_kp + 1))

    def create_heatmap_representations(self, feature: Tensor, kp_driving: Tensor, kp_source: Tensor) -> Tensor:
        """Driving minus source Gaussian of every keypoint, zero for the background: (B, 1+K, 1, D, H, W)."""
        depth, height, width = feature.shape[-3:]
        size = (depth, height, width)
        heatmap = kp2gaussian(kp_driving, size, KP_VARIANCE) - kp2gaussian(kp_source, size, KP_VARIANCE)
        background = heatmap.new_zeros(heatmap.shape[0], 1, *size)
        return torch.cat([background, heatmap], dim=1).unsqueeze(2)

    def forward(self, feature: Tensor, kp_driving: Tensor, kp_source: Tensor) -> dict[str, Tensor]:
        """Feature volume (B, C, D, H, W), keypoints (B, K, 3) in normalised coordinates -> dict.

        ``mask`` (B, 1+K, D, H, W) sums to one over its second axis; ``deformation`` (B, D, H, W, 3) holds normalised
        (x, y, z) sampling positions; ``occlusion_map`` (B, 1, H, W) in 0..1, absent when it is not estimated.
        """
        compressed = F.relu(self.norm(self.compress(feature)))
        motions = self.create_sparse_motions(compressed, kp_driving, kp_source)
        deformed = self.create_deformed_feature(compressed, motions)
        heatmap = self.create_heatmap_representations(deformed, kp_driving, kp_source)
        prediction = self.hourglass(torch.cat([heatmap, deformed], dim=2).flatten(1, 2))

        mask = F.softmax(self.mask(prediction), dim=1)
        deformation = (motions.permute(0, 1, 5, 2, 3, 4) * mask.unsqueeze(2)).sum(dim=1).permute(0, 2, 3, 4, 1)
        out = {"mask": mask, "deformation": deformation}
        if self.occlusion is not None:
            out["occlusion_map"] = torch.sigmoid(self.occlusion(prediction.flatten(1, 2)))
        return out
