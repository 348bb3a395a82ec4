"""accelerate and restore: what is recognised, what is answered, and that nothing is ever half done."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import lpkernels
from lpkernels.errors import InputError
from lpkernels.integrations._patch import patch_of
from tests.fused.networks import relative_error, tiny
from tests.integrations import programs
from tests.integrations.programs import NETWORKS, assert_same, patched


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_a_wrapper_answers_as_before(precision: str, tolerance: float) -> None:
    wrapper = programs.wrapper()
    before = programs.frame(wrapper)
    modules = [getattr(wrapper, name) for name in NETWORKS]
    report = lpkernels.accelerate(wrapper, precision=precision)
    assert report.replaced == NETWORKS
    assert_same(programs.frame(wrapper), before, tolerance)
    assert [getattr(wrapper, name) for name in NETWORKS] == modules, "the modules stay the objects they are"
    assert lpkernels.restore(wrapper).replaced == ()
    assert not any("forward" in vars(module) for module in modules)
    assert_same(programs.frame(wrapper), before)


def edges(wrapper: Any, *, half: bool) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Names, dtypes and shapes of what every network of a wrapper answers."""
    inputs = torch.float16 if half else torch.float32
    image, kp = torch.rand(2, 3, 64, 64, dtype=inputs), torch.zeros(2, 21, 3)
    with torch.no_grad(), wrapper.inference_ctx():
        feature_3d = wrapper.appearance_feature_extractor(image)
        motion = wrapper.motion_extractor(image)
        warped = wrapper.warping_module(feature_3d, kp, kp_source=kp)
        picture = wrapper.spade_generator(feature=warped["out"])
    answers = {"feature_3d": feature_3d, **motion, **warped, "picture": picture}
    return [(name, value.dtype, tuple(value.shape)) for name, value in answers.items()]


@pytest.mark.parametrize("half", [False, True])
def test_names_dtypes_and_shapes_are_the_originals(half: bool) -> None:
    """With autocast and half inputs, and with neither."""
    wrapper = programs.wrapper(half=half)
    expected = edges(wrapper, half=half)
    lpkernels.accelerate(wrapper)
    assert edges(wrapper, half=half) == expected


def test_answers_of_networks_in_half_are_half() -> None:
    decoder = programs.network("spade_generator").half()
    lpkernels.accelerate(decoder)
    assert decoder(torch.zeros(1, 64, 16, 16)).dtype == torch.float16


def test_answers_are_contiguous_and_the_callers_own() -> None:
    wrapper = programs.wrapper()
    lpkernels.accelerate(wrapper)
    image = torch.rand(2, 3, 64, 64)
    heads = wrapper.motion_extractor(image)
    heads["t"][..., 2].fill_(7)
    heads["kp"].view(2, 21, 3)
    again = wrapper.motion_extractor(image)
    assert not (again["t"] == 7).any()
    assert torch.equal(again["kp"], heads["kp"])
    feature_3d, kp = wrapper.appearance_feature_extractor(image), torch.zeros(2, 21, 3)
    answer = wrapper.warping_module(feature_3d, kp, kp)
    assert all(value.is_contiguous() and not value.requires_grad for value in answer.values())


@pytest.mark.parametrize("off", NETWORKS)
def test_a_part_that_is_switched_off_is_left(off: str) -> None:
    wrapper = programs.wrapper()
    before = programs.frame(wrapper)
    report = lpkernels.accelerate(wrapper, "fp32", **{off: False})
    assert patched(wrapper) == [name for name in NETWORKS if name != off]
    assert report.left[off] == "switched off"
    assert_same(programs.frame(wrapper), before, 1e-5)


def test_the_report_says_what_was_found() -> None:
    report = lpkernels.accelerate(programs.wrapper(), "bf16", spade_generator=False)
    lines = str(report).splitlines()
    assert lines[0] == "lpkernels: 3 of 4 parts of LivePortraitWrapper replaced"
    assert [line.split()[:4] for line in lines[3:5]] == [
        ["warping_module", "WarpingNetwork", "replaced", "bf16"],
        ["spade_generator", "SPADEDecoder", "left", "switched"],
    ]
    assert "MLPs" in report.left["stitching_retargeting_module"]


@pytest.mark.parametrize("name", NETWORKS)
def test_one_network_alone(name: str) -> None:
    network = programs.network(name)
    inputs = {
        "appearance_feature_extractor": [torch.rand(1, 3, 64, 64)],
        "motion_extractor": [torch.rand(1, 3, 64, 64)],
        "warping_module": [torch.randn(1, 8, 8, 16, 16), torch.zeros(1, 21, 3), torch.zeros(1, 21, 3)],
        "spade_generator": [torch.randn(1, 64, 16, 16)],
    }[name]

    def answers() -> list[Tensor]:
        with torch.no_grad():
            answer = network(*inputs)
        return list(answer.values()) if isinstance(answer, dict) else [answer]

    before, state = answers(), {key: value.clone() for key, value in network.state_dict().items()}
    report = lpkernels.accelerate(network, "fp32")
    assert report.replaced == (name,)
    for actual, expected in zip(answers(), before, strict=True):
        assert relative_error(actual, expected) < 1e-5
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    lpkernels.restore(network)
    assert all(torch.equal(*pair) for pair in zip(answers(), before, strict=True))


def test_a_network_without_an_occlusion_map() -> None:
    network = copy.deepcopy(tiny(occlusion=False).warping_module)
    arguments = torch.randn(1, 8, 8, 16, 16), torch.zeros(1, 21, 3), torch.zeros(1, 21, 3)
    lpkernels.accelerate(network)
    assert network(*arguments)["occlusion_map"] is None


def test_pipelines_and_the_objects_of_other_programs() -> None:
    config = programs.SimpleNamespace(half=False)
    node = programs.DownloadAndLoadModels()
    (comfy,) = node.loadmodel()
    engine = programs.Engine()
    with pytest.raises(InputError, match=r"no network of LivePortrait found in Engine: .*models loaded yet"):
        lpkernels.accelerate(engine)
    engine.get_pipeline()
    for target in (programs.LivePortraitPipeline(config), programs.LivePortraitPipelineAnimal(config), comfy, engine):
        report = lpkernels.accelerate(target)
        assert report.replaced == NETWORKS
        assert all(part.where.rpartition(".")[0] for part in report.parts), "paths lead through the holder"
    assert patched(node) == list(NETWORKS), "a node and its pipeline share their modules"
    assert lpkernels.restore(node).left["warping_module"] == "put back"
    assert patched(comfy.live_portrait_wrapper) == []


def test_again_with_the_same_and_with_other_settings() -> None:
    wrapper = programs.wrapper()
    lpkernels.accelerate(wrapper)
    first = [patch_of(getattr(wrapper, name)) for name in NETWORKS]
    report = lpkernels.accelerate(wrapper)
    assert [patch_of(getattr(wrapper, name)) for name in NETWORKS] == first
    assert {part.note for part in report.parts if part.replaced} == {"fp16, as before"}
    lpkernels.accelerate(wrapper, "bf16", motion_extractor=False)
    assert patched(wrapper) == [name for name in NETWORKS if name != "motion_extractor"]
    lpkernels.restore(wrapper)
    assert patched(wrapper) == []
    assert lpkernels.restore(wrapper).left["motion_extractor"] == "was not replaced"


def test_holders_that_lead_to_each_other() -> None:
    engine = programs.Engine()
    engine.get_pipeline().pipeline = engine
    assert lpkernels.accelerate(engine).replaced == NETWORKS
