"""Every network against the original's answers; the motion maths and whole clips are checked in tests/animate."""

from __future__ import annotations

import re

import pytest
import torch

from lpkernels.models import LivePortrait, LivePortraitConfig
from tests.golden.load import MODULES, compare, compare_rgb, draw, load_golden, picture, read_json

SIZES = ["tiny", pytest.param("full", marks=pytest.mark.slow)]
# Checked with the motion maths: pose in degrees, rotation, source and driving keypoints.
OF_ANIMATE = re.compile(r"kp_info\..*|R_s|x_s|frame\d+\.x_d|W\.kp_.*|source|driving\d+|.*\.step|.*\.shape")
FRAMES = [f"frame{i}" for i in range(3)]
CHECKED = {
    "feature_3d",
    *(f"motion.{head}" for head in ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")),
    *(f"W.{name}" for name in ("mask", "deformation", "occlusion_map", "out")),
    "G.out",
    *(f"S.{name}" for name in ("stitching", "eye", "lip")),
    *(f"{frame}.{name}" for frame in FRAMES for name in ("out", "rgb")),
}


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_keys_shapes_and_their_order_are_the_originals(name: str) -> None:
    data = read_json(name)
    with torch.device("meta"):
        model = LivePortrait(LivePortraitConfig.named(name))
    for key, module in MODULES.items():
        state = model.get_submodule(module).state_dict()
        assert [(k, list(v.shape)) for k, v in state.items()] == list(data["shapes"][key].items())


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_config_of_the_golden_file_is_the_named_one(name: str) -> None:
    image_size = {"tiny": 64, "full": 256}[name]
    config = LivePortraitConfig.from_dict({"image_size": image_size, **read_json(name)["config"]})
    assert config == LivePortraitConfig.named(name)


def test_no_array_is_left_unchecked() -> None:
    _, _, arrays = load_golden("tiny")
    assert {key for key in arrays if not OF_ANIMATE.fullmatch(key)} == CHECKED


@pytest.mark.parametrize("name", SIZES)
def test_appearance_feature_extractor(name: str) -> None:
    _, model, arrays = load_golden(name)
    compare("feature_3d", model.extract_feature_3d(picture("source", arrays)), arrays)


@pytest.mark.parametrize("name", SIZES)
def test_motion_extractor(name: str) -> None:
    _, model, arrays = load_golden(name)
    heads = model.extract_motion(picture("source", arrays))
    assert list(heads) == ["pitch", "yaw", "roll", "t", "exp", "scale", "kp"]
    for head, value in heads.items():
        compare(f"motion.{head}", value, arrays)


@pytest.mark.parametrize("name", SIZES)
def test_warping_module(name: str) -> None:
    config, model, arrays = load_golden(name)
    appearance, side = config.appearance_feature_extractor, config.image_size // 4
    volume = draw("volume", (1, appearance.reshape_channel, appearance.reshape_depth, side, side))
    kp_source, kp_driving = (torch.from_numpy(arrays[f"W.kp_{kind}"]) for kind in ("source", "driving"))
    result = model.warp(volume, kp_source, kp_driving)
    for key in ("deformation", "occlusion_map", "out"):
        value = result[key]
        assert value is not None
        compare(f"W.{key}", value, arrays)
    with torch.no_grad():
        dense = model.warping_module.dense_motion_network(volume, kp_driving=kp_driving, kp_source=kp_source)
    compare("W.mask", dense["mask"], arrays)


@pytest.mark.parametrize("name", SIZES)
def test_spade_generator(name: str) -> None:
    config, model, arrays = load_golden(name)
    side = config.image_size // 4
    feature = draw("decoder_in", (1, config.spade_generator.feature_channels, side, side), 0.5)
    compare("G.out", model.decode(feature), arrays)


@pytest.mark.parametrize("name", SIZES)
def test_stitching_retargeting_module(name: str) -> None:
    _, model, arrays = load_golden(name)
    calls = (("stitching", model.stitch, 126), ("eye", model.retarget_eye, 66), ("lip", model.retarget_lip, 65))
    for tag, call, size in calls:
        compare(f"S.{tag}", call(draw(f"S.{tag}", (3, size), 0.3)), arrays)


@pytest.mark.parametrize("name", SIZES)
def test_frames_from_stored_keypoints(name: str) -> None:
    _, model, arrays = load_golden(name)
    feature_3d = model.extract_feature_3d(picture("source", arrays))
    for frame in FRAMES:
        x_s, x_d = (torch.from_numpy(arrays[key]) for key in ("x_s", f"{frame}.x_d"))
        image = model.warp_decode(feature_3d, x_s, x_d)
        compare(f"{frame}.out", image, arrays)
        compare_rgb(f"{frame}.rgb", (image[0].permute(1, 2, 0) * 255).to(torch.uint8), arrays)
