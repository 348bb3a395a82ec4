"""What is not replaced: unknown versions, other objects, bad settings; and that nothing is ever half done."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import nn

import lpkernels
from lpkernels.errors import InputError
from lpkernels.integrations import _networks
from lpkernels.integrations._patch import Patch
from tests.fused.networks import tiny
from tests.integrations import programs
from tests.integrations.programs import NETWORKS, assert_same, patched


def rename(wrapper: Any) -> None:
    conv = wrapper.spade_generator.up_0
    conv.conv_9 = conv.conv_1
    del conv.conv_1


def widen(wrapper: Any) -> None:
    wrapper.warping_module.dense_motion_network.hourglass.decoder.conv = nn.Conv3d(74, 74, 1)


def empty(wrapper: Any) -> None:
    wrapper.motion_extractor = nn.Linear(3, 3)


def train(wrapper: Any) -> None:
    wrapper.warping_module.train()


def ignore_occlusion(wrapper: Any) -> None:
    wrapper.warping_module.flag_use_occlusion_map = False


def double(wrapper: Any) -> None:
    wrapper.spade_generator.double()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename, r"spade_generator \(SPADEDecoder\) is no .* missing keys: up_0.conv_1.bias, .* and 1 more; unexp"),
        (widen, r"other shapes: .*decoder.conv.weight \(74, 74, 1, 1, 1\), expected \(74, 74, 3, 3, 3\)\. Nothing was"),
        (empty, r"motion_extractor \(Linear\) is no version .* missing keys: detector.* more; unexpected keys: weight"),
        (train, "warping_module .* training mode; call .eval"),
        (ignore_occlusion, "flag_use_occlusion_map is False, not True"),
        (double, "parameters are float64"),
    ],
)
def test_an_unknown_version_is_refused_and_nothing_is_replaced(change: Any, said: str) -> None:
    wrapper = programs.wrapper()
    change(wrapper)
    with pytest.raises(InputError, match=said) as caught:
        lpkernels.accelerate(wrapper)
    assert patched(wrapper) == []
    name = next(name for name in NETWORKS if f"{name}=False" in str(caught.value))
    assert lpkernels.accelerate(wrapper, **{name: False}).left[name] == "switched off"


def test_what_is_no_torch_module_is_left() -> None:
    wrapper = programs.wrapper()
    wrapper.spade_generator = lambda feature: feature
    assert lpkernels.accelerate(wrapper).left["spade_generator"] == "no torch module"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (programs.LivePortraitWrapper, "got the class LivePortraitWrapper; accelerate.. without a target"),
        ("bf16", "a precision is given as precision='bf16'"),
        (object(), "no network of LivePortrait found in object"),
        (nn.Linear(1, 1), r"in its attributes \(training"),
        (tiny(), "use lpkernels.optimize"),
    ],
)
def test_a_target_without_networks(target: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lpkernels.accelerate(target)


def test_bad_settings() -> None:
    wrapper = programs.wrapper()
    for said, settings in {
        "precision must be one of fp16, bf16, fp32, got 'int8'": {"precision": "int8"},
        "switches are appearance_.*paste_back, True or False; got stitching=False": {"stitching": False},
        "True or False; got warping_module=1": {"warping_module": 1},
        "graph=True needs networks on a CUDA device, appearance_feature_extractor is on cpu": {"graph": True},
        "leave graph=True out": {"graph": True, "check_finite": True},
    }.items():
        with pytest.raises(InputError, match=said):
            lpkernels.accelerate(wrapper, **settings)
        assert patched(wrapper) == []


@pytest.mark.parametrize("first", [None, "fp32"])
@pytest.mark.parametrize("where", ["building", "installing"])
def test_an_exception_in_the_middle_changes_nothing(
    where: str, first: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = programs.wrapper()
    if first:
        lpkernels.accelerate(wrapper, first)
    before = programs.frame(wrapper)
    with monkeypatch.context() as patching:
        if where == "building":
            broken = dataclasses.replace(_networks.NETWORKS[3], replacement=lambda *_: 1 / 0)
            patching.setattr(_networks, "NETWORKS", (*_networks.NETWORKS[:3], broken))
        else:
            steps = iter([None, None, ZeroDivisionError])
            install = Patch.install

            def fail_once(patch: Patch) -> None:
                if error := next(steps, None):
                    raise error
                install(patch)

            patching.setattr(Patch, "install", fail_once)
        with pytest.raises(ZeroDivisionError):
            lpkernels.accelerate(wrapper)
    assert patched(wrapper) == (list(NETWORKS) if first else [])
    assert_same(programs.frame(wrapper), before)
    lpkernels.restore(wrapper)
    assert not any("forward" in vars(getattr(wrapper, name)) for name in NETWORKS)
