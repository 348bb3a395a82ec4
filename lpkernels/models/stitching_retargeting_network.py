"""Stitching and retargeting, S in the paper: three small MLPs that correct the driving keypoints."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from lpkernels.models.config import MLPConfig, StitchingRetargetingModuleConfig


class StitchingRetargetingNetwork(nn.Module):
    """(B, input_size) -> (B, output_size): linear layers with a ReLU between each two."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        sizes = (config.input_size, *config.hidden_sizes)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(sizes[-1], config.output_size))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


def make_stitching_retargeting_module(config: StitchingRetargetingModuleConfig) -> nn.ModuleDict:
    """The three MLPs under their names, ``stitching``, ``lip`` and ``eye``."""
    return nn.ModuleDict(
        {name: StitchingRetargetingNetwork(getattr(config, name)) for name in ("stitching", "lip", "eye")}
    )
