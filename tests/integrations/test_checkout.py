"""A real program: LPKERNELS_LIVEPORTRAIT names a checkout of the original, or of one of the ComfyUI packages.

Its wrapper is imported as it is, around its own networks in small sizes with random weights. Packages that only its
pictures and messages need are stubbed where they are missing.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lpkernels
from benchmarks import checkout
from lpkernels.models import LivePortraitConfig
from lpkernels.models.motion_extractor import MotionExtractor
from lpkernels.models.random_weights import make_state_dict
from tests.fused.networks import relative_error, tiny
from tests.integrations.programs import NETWORKS, assert_same, patched

CHECKOUT = checkout.path()
CLASSES = ("AppearanceFeatureExtractor", "MotionExtractor", "WarpingNetwork", "SPADEDecoder")
FILES = dict(zip(NETWORKS, ("appearance_feature_extractor", "motion_extractor", "warping_network", "spade_generator")))  # noqa: B905

pytestmark = pytest.mark.skipif(not CHECKOUT, reason="LPKERNELS_LIVEPORTRAIT names no checkout of LivePortrait")


@pytest.fixture(scope="module")
def package() -> Iterator[str]:
    """The package of the checkout that holds the wrapper, importable."""
    assert CHECKOUT is not None
    with checkout.importable(CHECKOUT) as found:
        yield found.package


@functools.cache
def motion_state() -> dict[str, Tensor]:
    """The original has one size of M only."""
    with torch.device("meta"):
        network = MotionExtractor(LivePortraitConfig.full().motion_extractor)
    return make_state_dict(network, "motion")


def parameters() -> dict[str, dict[str, Any]]:
    """The arguments of the networks' constructors."""
    config = tiny().config
    found = {name: dataclasses.asdict(getattr(config, name)) for name in NETWORKS}
    found["motion_extractor"] = {"num_kp": 21, "backbone": "convnextv2_tiny"}
    return found


def states() -> dict[str, dict[str, Tensor]]:
    found = {name: dict(tiny().get_submodule(name).state_dict()) for name in NETWORKS}
    return {**found, "motion_extractor": motion_state()}


def networks(package: str) -> dict[str, nn.Module]:
    """The checkout's own, with weights that behave like trained ones."""
    made = {}
    for name, kind in zip(NETWORKS, CLASSES, strict=True):
        module = importlib.import_module(f"{package}.modules.{FILES[name]}")
        made[name] = getattr(module, kind)(**parameters()[name]).eval()
        made[name].load_state_dict(states()[name])
    return made


def construct(package: str, kind: str, half: bool, folder: Path) -> Any:
    """A wrapper, by whichever constructor this program has: from files, or around networks."""
    wrapper = getattr(importlib.import_module(f"{package}.live_portrait_wrapper"), kind)
    arguments = inspect.signature(wrapper).parameters
    config = SimpleNamespace(flag_use_half_precision=half, device_id="cpu", input_shape=(64, 64))
    if "inference_cfg" not in arguments:
        return wrapper(cfg=config, stitching_retargeting_module=None, **networks(package))
    config.flag_do_torch_compile, config.flag_force_cpu = False, True
    config.models_config = folder / "models.yaml"
    config.models_config.write_text(
        json.dumps({"model_params": {f"{name}_params": values for name, values in parameters().items()}})
    )
    suffix = "_animal" if kind.endswith("Animal") else ""
    for letter, name in zip("FMWG", NETWORKS, strict=True):
        setattr(config, f"checkpoint_{letter}{suffix}", folder / f"{name}.pth")
        torch.save(states()[name], folder / f"{name}.pth")
    setattr(config, f"checkpoint_S{suffix}", None)
    return wrapper(inference_cfg=config)


def frame(wrapper: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        source, driving = (wrapper.get_kp_info(picture) for picture in (image, image.flip(-1)))
        feature_3d = wrapper.extract_feature_3d(image)
        kp_source, kp_driving = (wrapper.transform_keypoint(info) for info in (source, driving))
        answer = wrapper.warp_decode(feature_3d, kp_source, kp_driving)
    return {"kp": kp_driving, "feature_3d": feature_3d, **answer}


def kinds(package: str) -> list[str]:
    module = importlib.import_module(f"{package}.live_portrait_wrapper")
    return [name for name in ("LivePortraitWrapper", "LivePortraitWrapperAnimal") if hasattr(module, name)]


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-4), (True, 0.1)])
def test_the_wrapper_answers_as_before(package: str, half: bool, tolerance: float, tmp_path: Path) -> None:
    """In autocast FP16 the original's own rounding is in the difference."""
    for kind in kinds(package)[: 1 if half else None]:  # half precision is slow on a CPU
        wrapper = construct(package, kind, half, tmp_path)
        before = frame(wrapper)
        report = lpkernels.accelerate(SimpleNamespace(live_portrait_wrapper=wrapper), "fp32")
        assert report.replaced == NETWORKS
        after = frame(wrapper)
        for name, value in before.items():
            assert after[name].dtype == value.dtype
            assert relative_error(after[name], value) < tolerance, name
        lpkernels.restore(wrapper)
        assert_same(frame(wrapper), before)


def test_edges(package: str) -> None:
    """Names, order, dtypes and shapes of the networks themselves, with and without autocast."""
    own = networks(package)
    image, kp = torch.rand(2, 3, 64, 64), torch.zeros(2, 21, 3)

    def answers(half: bool) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            feature_3d = own["appearance_feature_extractor"](image)
            warped = own["warping_module"](feature_3d, kp_source=kp, kp_driving=kp)
            picture = own["spade_generator"](feature=warped["out"])
            found = {"f": feature_3d, **own["motion_extractor"](image), **warped, "picture": picture}
        return [(name, value.dtype, tuple(value.shape)) for name, value in found.items()]

    expected = [answers(half) for half in (False, True)]
    for network in own.values():
        lpkernels.accelerate(network)
    assert [answers(half) for half in (False, True)] == expected


def test_construction(package: str, tmp_path: Path) -> None:
    sys.modules.pop(f"{package}.live_portrait_wrapper", None)
    with lpkernels.accelerate() as acceleration:
        wrappers = [construct(package, kind, False, tmp_path) for kind in kinds(package)]
    assert [patched(wrapper) for wrapper in wrappers] == [list(NETWORKS)] * len(wrappers)
    assert len(acceleration.reports) == len(wrappers)
