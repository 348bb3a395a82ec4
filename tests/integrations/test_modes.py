"""An accelerated network under torch.compile, in inference mode, on threads, and after its original was changed."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

import lpkernels
from lpkernels.errors import LpkernelsError
from tests.fused.networks import relative_error
from tests.integrations import programs
from tests.integrations.programs import NETWORKS, assert_same


def test_everything_works_in_inference_mode() -> None:
    """As ComfyUI runs its nodes."""
    node = programs.DownloadAndLoadModels()
    with torch.inference_mode():
        wrapper = node.loadmodel()[0].live_portrait_wrapper
        before = programs.frame(wrapper)
        lpkernels.accelerate(wrapper, "fp32")
        assert_same(programs.frame(wrapper), before, 1e-5)
    with torch.no_grad():
        assert_same(programs.frame(wrapper), before, 1e-5)


def test_other_weights_are_noticed() -> None:
    network = programs.network("spade_generator")
    lpkernels.accelerate(network)
    network.load_state_dict({key: 2 * value for key, value in network.state_dict().items()})
    with pytest.raises(LpkernelsError, match=r"has loaded other weights .*: call lpkernels.accelerate again"):
        network(torch.zeros(1, 64, 16, 16))
    lpkernels.restore(network)
    expected = network(torch.ones(1, 64, 16, 16))
    lpkernels.accelerate(network, "fp32")
    assert relative_error(network(torch.ones(1, 64, 16, 16)), expected) < 1e-5


def test_another_device_is_refused() -> None:
    network = programs.network("spade_generator")
    lpkernels.accelerate(network)
    with pytest.raises(LpkernelsError, match="spade_generator was accelerated on cpu, and feature is on meta"):
        network(torch.zeros(1, 64, 16, 16, device="meta"))


def test_the_original_weights_may_leave_the_device() -> None:
    network, feature = programs.network("spade_generator"), torch.ones(1, 64, 16, 16)
    lpkernels.accelerate(network)
    expected = network(feature)
    network.to("meta")
    assert torch.equal(network(feature), expected)


def test_an_accelerated_network_is_not_copied() -> None:
    network = programs.network("spade_generator")
    lpkernels.accelerate(network)
    for copies in (copy.deepcopy, pickle.dumps):
        with pytest.raises(LpkernelsError, match=r"call lpkernels.restore first"):
            copies(network)
    lpkernels.restore(network)
    copy.deepcopy(network)


def test_check_finite_names_the_layer() -> None:
    network = programs.network("spade_generator")
    with torch.no_grad():
        network.fc.bias.fill_(float("inf"))
    lpkernels.accelerate(network, check_finite=True)
    with pytest.raises(LpkernelsError, match=r"fc \(ConvSpade\) is the first layer to give inf or NaN"):
        network(torch.zeros(1, 64, 16, 16))


def test_compiled_modules_are_bypassed_and_put_back() -> None:
    wrapper = programs.wrapper()
    wrapper.motion_extractor = torch.compile(wrapper.motion_extractor, backend="eager")
    wrapper.appearance_feature_extractor.compile(backend="eager")
    before = programs.frame(wrapper)
    modules = [getattr(wrapper, name) for name in NETWORKS]
    own = [{name: vars(module).get(name) for name in ("forward", "_compiled_call_impl")} for module in modules]
    report = lpkernels.accelerate(wrapper, "fp32")
    bypassed = [part.network for part in report.parts if "torch.compile is bypassed" in part.note]
    assert bypassed == ["appearance_feature_extractor", "motion_extractor"]
    torch.compiler.reset()
    assert_same(programs.frame(wrapper), before, 1e-5)
    assert "as before, its torch.compile is bypassed" in str(lpkernels.accelerate(wrapper, "fp32"))
    lpkernels.restore(wrapper)
    assert [{name: vars(module).get(name) for name in values} for module, values in zip(modules, own)] == own  # noqa: B905
    assert_same(programs.frame(wrapper), before)


def test_a_caller_may_be_compiled() -> None:
    network = programs.network("spade_generator")
    feature = torch.randn(1, 64, 16, 16)
    lpkernels.accelerate(network, "fp32")
    expected = network(feature)
    compiled = torch.compile(lambda x: network(x * 2 / 2) + 1, backend="eager")
    assert torch.allclose(compiled(feature), expected + 1)


def test_threads() -> None:
    wrapper = programs.wrapper()
    lpkernels.accelerate(wrapper)
    expected = [programs.frame(wrapper, seed) for seed in range(3)]
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            assert_same(programs.frame(wrapper, seed), expected[seed])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
