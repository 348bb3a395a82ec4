"""Configurations: named sizes, dicts there and back, and every refusal."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from lpkernels.errors import InputError
from lpkernels.models.config import (
    AppearanceFeatureExtractorConfig,
    LivePortraitConfig,
    MotionExtractorConfig,
    SPADEGeneratorConfig,
)


@pytest.mark.parametrize(
    ("name", "image_size", "output_size"), [("full", 256, 512), ("small", 128, 256), ("tiny", 64, 128)]
)
def test_named_sizes(name: str, image_size: int, output_size: int) -> None:
    config = LivePortraitConfig.named(name)
    assert (config.image_size, config.output_size) == (image_size, output_size)
    assert config.num_kp == 21
    assert config.feature_stride == 4


def test_small_has_the_widths_of_tiny() -> None:
    assert dataclasses.replace(LivePortraitConfig.small(), image_size=64) == LivePortraitConfig.tiny()


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="full, small, tiny; got 'huge'"):
        LivePortraitConfig.named("huge")


@pytest.mark.parametrize("name", ["full", "small", "tiny"])
def test_json_round_trip(name: str) -> None:
    config = LivePortraitConfig.named(name)
    data = json.loads(json.dumps(config.to_dict()))
    assert LivePortraitConfig.from_dict(data) == config
    assert set(data) == {
        "image_size",
        "appearance_feature_extractor_params",
        "motion_extractor_params",
        "warping_module_params",
        "spade_generator_params",
        "stitching_retargeting_module_params",
    }


def test_upscale_one_halves_the_output() -> None:
    config = dataclasses.replace(LivePortraitConfig.full(), spade_generator=SPADEGeneratorConfig(upscale=1))
    assert config.output_size == 256


def test_absent_image_size_and_fields_take_the_originals_values() -> None:
    data = LivePortraitConfig.full().to_dict()
    del data["image_size"]
    del data["spade_generator_params"]["out_channels"]
    assert LivePortraitConfig.from_dict(data) == LivePortraitConfig.full()


def changed(path: str, value: Any) -> dict[str, Any]:
    """The full configuration with one entry, at a dotted path, set or (``...``) removed."""
    data = LivePortraitConfig.full().to_dict()
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("wrapping_module_params", {}, "unknown key 'wrapping_module_params'"),
        ("warping_module_params", ..., "lacks the section 'warping_module_params'"),
        ("warping_module_params", 3, "warping_module must be a mapping, got 3"),
        ("warping_module_params.widht", 3, "warping_module has an unknown key 'widht'"),
        ("warping_module_params.dense_motion_params.kompress", 3, "dense_motion_params has an unknown key 'kompress'"),
        ("warping_module_params.estimate_occlusion_map", 1, "estimate_occlusion_map must be a bool, got 1"),
        ("warping_module_params.num_kp", 20, "warping_module.num_kp must equal motion_extractor.num_kp, 21; got 20"),
        (
            "warping_module_params.block_expansion",
            32,
            "output channels must equal spade_generator's input, 256; got 128",
        ),
        ("warping_module_params.dense_motion_params.reshape_depth", 8, "must equal the volume's depth, 16; got 8"),
        ("motion_extractor_params.backbone", "resnet", "backbone must be convnextv2_tiny or convnextv2, got 'resnet'"),
        ("motion_extractor_params.backbone", 4, "backbone must be a str, got 4"),
        ("motion_extractor_params.depths", [1, 1, 1, 1], "convnextv2_tiny has fixed depths"),
        ("motion_extractor_params.depths", 3, "depths must be a list of integers, got 3"),
        ("motion_extractor_params.depths", [], "depths must hold positive integers"),
        ("motion_extractor_params.dims", [96, 192, 384.5, 768], "dims must hold positive integers"),
        ("spade_generator_params.upscale", 4, "upscale must be 1 or 2, got 4"),
        ("spade_generator_params.upscale", True, "upscale must hold positive integers, got True"),
        ("appearance_feature_extractor_params.reshape_depth", 0, "reshape_depth must hold positive integers, got 0"),
        (
            "appearance_feature_extractor_params.max_features",
            256,
            "max_features must equal channel . depth, 512; got 256",
        ),
        ("stitching_retargeting_module_params.eye", {"input_size": 66}, "eye lacks the key 'hidden_sizes'"),
        (
            "stitching_retargeting_module_params.lip.output_size",
            60,
            "lip.output_size must equal 3 . num_kp, 63; got 60",
        ),
        ("image_size", "256", "image_size must hold positive integers, got '256'"),
        ("image_size", 200, "image_size must be a multiple of 128"),
    ],
)
def test_refusals_name_the_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        LivePortraitConfig.from_dict(changed(path, value))
    assert "\n" not in str(caught.value)


def test_more_refusals() -> None:
    with pytest.raises(InputError, match="must be a mapping, got list"):
        LivePortraitConfig.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="motion_extractor must be a MotionExtractorConfig, got dict"):
        LivePortraitConfig(motion_extractor={})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="four entries"):
        LivePortraitConfig(motion_extractor=MotionExtractorConfig(backbone="convnextv2", depths=(1, 2)))
    with pytest.raises(InputError, match="reshape_depth must be at least 2"):
        LivePortraitConfig(
            appearance_feature_extractor=AppearanceFeatureExtractorConfig(reshape_channel=512, reshape_depth=1)
        )
