"""The sizes of a published network, read off the shapes of its parameters.

Two configurations with the same shapes are the same network, so where several would do (block expansion and number of
down blocks, of which only a product matters), the published split is taken. ``KeyError``, ``ValueError`` and
``ZeroDivisionError`` mean that the shapes are no such network's.
"""

from __future__ import annotations

from collections.abc import Mapping

from lpkernels.models._config_fit import TINY_DEPTHS, TINY_DIMS
from lpkernels.models.config import (
    AppearanceFeatureExtractorConfig,
    DenseMotionConfig,
    MotionExtractorConfig,
    SPADEGeneratorConfig,
    WarpingModuleConfig,
)

Shapes = Mapping[str, tuple[int, ...]]
"""Key of the state dict -> shape."""


def appearance_feature_extractor(shapes: Shapes) -> AppearanceFeatureExtractorConfig:
    """F: the 2D convs give the widths, the 3D ones the volume's channels."""
    width, channels = shapes["first.conv.weight"][:2]
    features, volume_channels = shapes["second.weight"][0], shapes["resblocks_3d.3dr0.conv1.weight"][0]
    return AppearanceFeatureExtractorConfig(
        image_channel=channels,
        block_expansion=width,
        num_down_blocks=_count(shapes, "down_blocks."),
        max_features=features,
        reshape_channel=volume_channels,
        reshape_depth=_exactly(features, volume_channels),
        num_resblocks=_count(shapes, "resblocks_3d."),
    )


def motion_extractor(shapes: Shapes) -> MotionExtractorConfig:
    """M: any depths and dims of ConvNeXt V2."""
    steps = _count(shapes, "detector.downsample_layers.")
    convs = ["0.0", *(f"{step}.1" for step in range(1, steps))]  # before its norm in the stem, after it elsewhere
    dims = tuple(shapes[f"detector.downsample_layers.{conv}.weight"][0] for conv in convs)
    depths = tuple(_count(shapes, f"detector.stages.{stage}.") for stage in range(steps))
    return MotionExtractorConfig(
        num_kp=_exactly(shapes["detector.fc_kp.weight"][0], 3),
        backbone="convnextv2_tiny" if (depths, dims) == (TINY_DEPTHS, TINY_DIMS) else "convnextv2",
        num_bins=shapes["detector.fc_pitch.weight"][0],
        depths=depths,
        dims=dims,
    )


def warping_module(shapes: Shapes) -> WarpingModuleConfig:
    """W: the hourglass answers with its own width beside its input's channels, 1 + compress for each motion."""
    dense = "dense_motion_network."
    masks, filters = shapes[f"{dense}mask.weight"][:2]
    compress, channels = shapes[f"{dense}compress.weight"][:2]
    width, features = shapes["third.conv.weight"][:2]
    blocks = _count(shapes, f"{dense}hourglass.encoder.down_blocks.")
    down = f"{dense}hourglass.encoder.down_blocks.{{}}.conv.weight"
    dense_motion = DenseMotionConfig(
        block_expansion=filters - masks * (compress + 1),
        max_features=max(shapes[down.format(block)][0] for block in range(blocks)),
        num_blocks=blocks,
        reshape_depth=_exactly(features, channels),
        compress=compress,
    )
    halvings = 2 if width % 4 == 0 else 0
    return WarpingModuleConfig(
        num_kp=masks - 1,
        block_expansion=width >> halvings,
        max_features=features,
        num_down_blocks=halvings,
        reshape_channel=channels,
        estimate_occlusion_map=f"{dense}occlusion.weight" in shapes,
        dense_motion_params=dense_motion,
    )


def spade_generator(shapes: Shapes) -> SPADEGeneratorConfig:
    """G: a plain last conv is ``upscale`` 1, one before a pixel shuffle 2 (the original knows no other)."""
    label = shapes["fc.weight"][1]
    plain = "conv_img.weight" in shapes
    halvings = 2 if label % 4 == 0 else 0
    return SPADEGeneratorConfig(
        upscale=1 if plain else 2,
        block_expansion=label >> halvings,
        max_features=2 * label,
        num_down_blocks=halvings,
        out_channels=shapes["conv_img.weight" if plain else "conv_img.0.weight"][1],
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered children there are below ``prefix``."""
    return len({key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)})


def _exactly(value: int, divisor: int) -> int:
    quotient, rest = divmod(value, divisor)
    if rest:
        raise ValueError(f"{value} is no multiple of {divisor}")
    return quotient
