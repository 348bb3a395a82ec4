"""The networks of a frame with their real shapes: which module, which inputs, and what of the answer counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.keypoints import PublishedKeypoints, head_sizes
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait

KEYPOINTS = 21


@dataclass(frozen=True)
class Random:
    """Fresh random tensors on a device, the same for the same seed."""

    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        object.__setattr__(self, "_generator", torch.Generator(self.device).manual_seed(self.seed))

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        generator: torch.Generator = self.__dict__["_generator"]
        return torch.randn(shape, generator=generator, device=self.device) * scale

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        generator: torch.Generator = self.__dict__["_generator"]
        return torch.rand(shape, generator=generator, device=self.device) * (high - low) + low

    def keypoints(self, batch: int) -> tuple[Tensor, Tensor]:
        """(source, driving) keypoints (B, 21, 3): a face's spread, the driving one a little away."""
        source = self.uniform(batch, KEYPOINTS, 3, low=-0.6, high=0.6)
        return source, source + self.normal(batch, KEYPOINTS, 3, scale=0.05)


@dataclass(frozen=True)
class Network:
    """One network, by the name it has in a model, with its inputs for (config, batch, random).

    ``compared`` takes what the next step of a frame reads out of the network's answer.
    """

    name: str
    module: Callable[[LivePortrait], nn.Module]
    inputs: Callable[[LivePortraitConfig, int, Random], tuple[Tensor, ...]]
    compared: Callable[[Any], Any] = lambda answer: answer


def feature_size(config: LivePortraitConfig) -> int:
    """Height and width of the feature volume: the image halved by each down block."""
    return config.image_size >> config.appearance_feature_extractor.num_down_blocks


def volume_shape(config: LivePortraitConfig) -> tuple[int, int, int, int]:
    """(C, D, H, W) of the feature volume."""
    extractor, size = config.appearance_feature_extractor, feature_size(config)
    return extractor.reshape_channel, extractor.reshape_depth, size, size


def _image(config: LivePortraitConfig, batch: int, random: Random) -> tuple[Tensor, ...]:
    return (random.uniform(batch, 3, config.image_size, config.image_size),)


def _warping(config: LivePortraitConfig, batch: int, random: Random) -> tuple[Tensor, ...]:
    source, driving = random.keypoints(batch)
    return random.normal(batch, *volume_shape(config)), driving, source


def _decoder(config: LivePortraitConfig, batch: int, random: Random) -> tuple[Tensor, ...]:
    size = feature_size(config)
    return (random.normal(batch, 4 * config.spade_generator.block_expansion, size, size, scale=0.5),)


def _features(width: int) -> Callable[[LivePortraitConfig, int, Random], tuple[Tensor, ...]]:
    return lambda config, batch, random: (random.normal(batch, width, scale=0.3),)


def random_heads(config: LivePortraitConfig, batch: int, random: Random) -> Tensor:
    """Rows of the motion extractor's heads: values as of a face."""
    spread = {"t": 0.1, "exp": 0.03, "scale": 0.1, "kp": 0.3}
    parts = {name: random.normal(batch, size, scale=spread.get(name, 1.0)) for name, size in head_sizes(config).items()}
    parts["scale"] += 1.3
    return torch.cat(list(parts.values()), dim=1)


def _keypoints(model: LivePortrait) -> PublishedKeypoints:
    return PublishedKeypoints(model, random_heads(model.config, 2, Random(0, model.device)))


NETWORKS = (
    Network("motion_extractor", lambda model: model.motion_extractor, _image),
    Network("stitching", lambda model: model.stitching_retargeting_module["stitching"], _features(126)),
    Network("warping_module", lambda model: model.warping_module, _warping, lambda answer: answer["out"]),
    Network("spade_generator", lambda model: model.spade_generator, _decoder),
    Network("keypoints", _keypoints, lambda config, batch, random: (random_heads(config, batch, random),)),
    Network("appearance_feature_extractor", lambda model: model.appearance_feature_extractor, _image),
    Network("retarget_eye", lambda model: model.stitching_retargeting_module["eye"], _features(66)),
    Network("retarget_lip", lambda model: model.stitching_retargeting_module["lip"], _features(65)),
)


def parameters(module: nn.Module) -> int:
    """Number of weights a call must read."""
    return sum(parameter.numel() for parameter in module.parameters())
