"""ConvNeXt V2 (arXiv 2301.00808) with the heads of the motion extractor."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpkernels.models.config import MotionExtractorConfig


class LayerNorm(nn.Module):
    """Layer norm over channels: of (B, H, W, C), or of (B, C, H, W) when ``channels_first``."""

    def __init__(self, features: int, *, channels_first: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.channels_first = channels_first
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        if not self.channels_first:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * (centred / torch.sqrt(variance + self.eps)) + self.bias[:, None, None]


class GRN(nn.Module):
    """Global response normalisation of (B, H, W, C): gamma * x * n + beta + x, n = |x|_HW / mean_C |x|_HW."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, features))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        normalized = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * normalized) + self.beta + x


class Block(nn.Module):
    """Depthwise 7x7, layer norm, 4x linear, GELU, GRN, linear, residual; (B, C, H, W) stays."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.grn = GRN(4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        out = self.pwconv2(self.grn(self.act(self.pwconv1(out))))
        return x + out.permute(0, 3, 1, 2)


class ConvNeXtV2(nn.Module):
    """Image (B, 3, H, W) in 0..1, H and W at least 32 -> the raw heads of the motion extractor.

    Returns a dict: ``pitch``, ``yaw``, ``roll`` (B, num_bins) logits over angle bins; ``t`` (B, 3); ``exp`` (B, 3K);
    ``scale`` (B, 1); ``kp`` (B, 3K) canonical keypoints.
    """

    HEADS = ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")

    def __init__(self, config: MotionExtractorConfig) -> None:
        super().__init__()
        depths, dims = config.depths, config.dims
        stem = nn.Sequential(nn.Conv2d(3, dims[0], kernel_size=4, stride=4), LayerNorm(dims[0], channels_first=True))
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm(before, channels_first=True), nn.Conv2d(before, after, kernel_size=2, stride=2))
            )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim) for _ in range(depth))) for dim, depth in zip(dims, depths, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.fc_kp = nn.Linear(dims[-1], 3 * config.num_kp)
        self.fc_scale = nn.Linear(dims[-1], 1)
        self.fc_pitch = nn.Linear(dims[-1], config.num_bins)
        self.fc_yaw = nn.Linear(dims[-1], config.num_bins)
        self.fc_roll = nn.Linear(dims[-1], config.num_bins)
        self.fc_t = nn.Linear(dims[-1], 3)
        self.fc_exp = nn.Linear(dims[-1], 3 * config.num_kp)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        pooled = self.norm(x.mean([-2, -1]))
        return {name: getattr(self, f"fc_{name}")(pooled) for name in self.HEADS}
