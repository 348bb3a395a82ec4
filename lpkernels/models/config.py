"""Sizes of the five networks, field for field as in the original program's ``models.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lpkernels.errors import InputError
from lpkernels.models._config_fit import TINY_DEPTHS, TINY_DIMS, check_fit


@dataclass(frozen=True)
class AppearanceFeatureExtractorConfig:
    """F: image -> feature volume of ``reshape_channel`` channels and ``reshape_depth`` planes."""

    image_channel: int = 3
    block_expansion: int = 64
    num_down_blocks: int = 2
    max_features: int = 512
    reshape_channel: int = 32
    reshape_depth: int = 16
    num_resblocks: int = 6


@dataclass(frozen=True)
class MotionExtractorConfig:
    """M: a ConvNeXt V2 backbone; ``convnextv2_tiny`` fixes depths and dims, ``convnextv2`` takes any."""

    num_kp: int = 21
    backbone: str = "convnextv2_tiny"
    num_bins: int = 66
    depths: tuple[int, ...] = TINY_DEPTHS
    dims: tuple[int, ...] = TINY_DIMS


@dataclass(frozen=True)
class DenseMotionConfig:
    """The hourglass inside W that estimates masks and occlusion."""

    block_expansion: int = 32
    max_features: int = 1024
    num_blocks: int = 5
    reshape_depth: int = 16
    compress: int = 4


@dataclass(frozen=True)
class WarpingModuleConfig:
    """W: warps the feature volume by keypoints."""

    num_kp: int = 21
    block_expansion: int = 64
    max_features: int = 512
    num_down_blocks: int = 2
    reshape_channel: int = 32
    estimate_occlusion_map: bool = True
    dense_motion_params: DenseMotionConfig = field(default_factory=DenseMotionConfig)


@dataclass(frozen=True)
class SPADEGeneratorConfig:
    """G: decodes the warped feature; ``upscale`` 2 ends in a pixel shuffle that doubles the picture, 1 does not."""

    upscale: int = 2
    block_expansion: int = 64
    max_features: int = 512
    num_down_blocks: int = 2
    out_channels: int = 64

    @property
    def feature_channels(self) -> int:
        """Channels of the feature that G decodes."""
        return min(self.max_features, self.block_expansion * 2**self.num_down_blocks)


@dataclass(frozen=True)
class MLPConfig:
    """One of the three MLPs of S."""

    input_size: int
    hidden_sizes: tuple[int, ...]
    output_size: int


@dataclass(frozen=True)
class StitchingRetargetingModuleConfig:
    """S: stitching, lip and eye retargeting."""

    stitching: MLPConfig = MLPConfig(126, (128, 128, 64), 65)
    lip: MLPConfig = MLPConfig(65, (128, 128, 64), 63)
    eye: MLPConfig = MLPConfig(66, (256, 256, 128, 128, 64), 63)


@dataclass(frozen=True)
class LivePortraitConfig:
    """Sizes of all networks and of the square picture they read.

    Attributes:
        image_size: side of the input picture in pixels; the networks accept others, this is what they were trained at.

    Raises:
        InputError: sizes that do not fit together, naming both fields.
    """

    image_size: int = 256
    appearance_feature_extractor: AppearanceFeatureExtractorConfig = AppearanceFeatureExtractorConfig()
    motion_extractor: MotionExtractorConfig = MotionExtractorConfig()
    warping_module: WarpingModuleConfig = field(default_factory=WarpingModuleConfig)
    spade_generator: SPADEGeneratorConfig = SPADEGeneratorConfig()
    stitching_retargeting_module: StitchingRetargetingModuleConfig = StitchingRetargetingModuleConfig()

    def __post_init__(self) -> None:
        _check_values("config", self)
        check_fit(self)

    @property
    def num_kp(self) -> int:
        """Number of implicit keypoints, K."""
        return self.motion_extractor.num_kp

    @property
    def feature_stride(self) -> int:
        """Pixels of the input picture per cell of the feature volume."""
        return 2**self.appearance_feature_extractor.num_down_blocks

    @property
    def feature_multiple(self) -> int:
        """The feature volume's height and width must be multiples of this: the hourglass halves them that often."""
        return 2**self.warping_module.dense_motion_params.num_blocks

    @property
    def output_size(self) -> int:
        """Side of the square output picture in pixels."""
        return self.image_size // self.feature_stride * 4 * self.spade_generator.upscale

    @classmethod
    def full(cls) -> LivePortraitConfig:
        """The published model: 130 million parameters, 256x256 -> 512x512."""
        return cls()

    @classmethod
    def small(cls) -> LivePortraitConfig:
        """The widths of ``tiny`` at 128x128 -> 256x256: fast enough for a demonstration on a CPU."""
        return dataclasses.replace(cls.tiny(), image_size=128)

    @classmethod
    def tiny(cls) -> LivePortraitConfig:
        """Every kind of layer at the smallest widths, 64x64 -> 128x128: for tests."""
        return cls(
            image_size=64,
            appearance_feature_extractor=AppearanceFeatureExtractorConfig(
                block_expansion=16, max_features=64, reshape_channel=8, reshape_depth=8, num_resblocks=2
            ),
            motion_extractor=MotionExtractorConfig(backbone="convnextv2", depths=(1, 1, 2, 1), dims=(16, 32, 64, 128)),
            warping_module=WarpingModuleConfig(
                block_expansion=16,
                max_features=64,
                reshape_channel=8,
                dense_motion_params=DenseMotionConfig(
                    block_expansion=8, max_features=64, num_blocks=3, reshape_depth=8, compress=2
                ),
            ),
            spade_generator=SPADEGeneratorConfig(block_expansion=16, max_features=64, out_channels=16),
        )

    @classmethod
    def named(cls, name: str) -> LivePortraitConfig:
        """``full``, ``small`` or ``tiny``; InputError for any other name."""
        makers: dict[str, Callable[[], LivePortraitConfig]] = {"full": cls.full, "small": cls.small, "tiny": cls.tiny}
        if name not in makers:
            raise InputError(f"config must be one of {', '.join(makers)}; got {name!r}")
        return makers[name]()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LivePortraitConfig:
        """Build from the original's keys, ``<network>_params``, and ``image_size`` (256 when absent).

        A field left out of a network's section takes the original's default; a section left out is an error.

        Raises:
            InputError: an unknown key, a missing section, a value of the wrong type, sizes that do not fit together.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"config must be a mapping, got {type(data).__name__}")
        sections = {f"{name}_params": name for name in NETWORKS}
        known = {"image_size": "image_size", **sections}
        for key in data:
            if key not in known:
                raise InputError(f"config has an unknown key {key!r}; known keys: {', '.join(known)}")
        missing = [key for key in sections if key not in data]
        if missing:
            raise InputError(f"config lacks the section {missing[0]!r}; needed: {', '.join(sections)}")
        values = {known[key]: _parse(known[key], _FIELD_TYPES[known[key]], value) for key, value in data.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers (ready for JSON) that ``from_dict`` reads back to an equal config."""
        data: dict[str, Any] = {"image_size": self.image_size}
        for name in NETWORKS:
            data[f"{name}_params"] = _plain(dataclasses.asdict(getattr(self, name)))
        return data


NETWORKS = (
    "appearance_feature_extractor",
    "motion_extractor",
    "warping_module",
    "spade_generator",
    "stitching_retargeting_module",
)

_FIELD_TYPES: dict[str, Any] = {
    "image_size": int,
    "appearance_feature_extractor": AppearanceFeatureExtractorConfig,
    "motion_extractor": MotionExtractorConfig,
    "warping_module": WarpingModuleConfig,
    "spade_generator": SPADEGeneratorConfig,
    "stitching_retargeting_module": StitchingRetargetingModuleConfig,
    "dense_motion_params": DenseMotionConfig,
    "stitching": MLPConfig,
    "lip": MLPConfig,
    "eye": MLPConfig,
    "depths": tuple,
    "dims": tuple,
    "hidden_sizes": tuple,
    "backbone": str,
    "estimate_occlusion_map": bool,
}


def _parse(path: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind``: a dataclass from a mapping, a tuple from a list, anything else as it is."""
    if kind is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"config field {path} must be a list of integers, got {value!r}")
        return tuple(value)
    if not dataclasses.is_dataclass(kind):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"config field {path} must be a mapping, got {value!r}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            raise InputError(f"config field {path} has an unknown key {key!r}; known keys: {', '.join(fields)}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(f"config field {path} lacks the key {name!r}")
    made = {key: _parse(f"{path}.{key}", _FIELD_TYPES.get(key, int), item) for key, item in value.items()}
    return kind(**made)  # type: ignore[operator]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _check_values(path: str, config: Any) -> None:
    """Every number a positive integer, every list non-empty, every flag a flag."""
    for item in dataclasses.fields(config):
        name, value = f"{path}.{item.name}", getattr(config, item.name)
        kind = _FIELD_TYPES.get(item.name, int)
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, kind):  # type: ignore[arg-type]
                raise InputError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")  # type: ignore[union-attr]
            _check_values(name, value)
        elif kind in (str, bool):
            if not isinstance(value, kind):
                raise InputError(f"{name} must be a {kind.__name__}, got {value!r}")
        else:
            sizes = value if kind is tuple and isinstance(value, tuple) else (value,)
            if not sizes or any(type(size) is not int or size < 1 for size in sizes):
                raise InputError(f"{name} must hold positive integers, got {value!r}")
