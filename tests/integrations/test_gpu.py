"""An accelerated program on a GPU: frames are CUDA graphs, and callers notice nothing of them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import lpkernels
from tests.fused.networks import relative_error
from tests.integrations import programs
from tests.integrations.programs import NETWORKS, assert_same

pytestmark = pytest.mark.gpu


@pytest.fixture
def accelerated() -> tuple[Any, list[dict[str, Tensor]]]:
    """A wrapper whose frames are recorded, and what it answered for three sources before."""
    wrapper = programs.wrapper(device="cuda")
    before = [programs.frame(wrapper, seed) for seed in range(3)]
    report = lpkernels.accelerate(wrapper, graph=True)
    assert [part.note for part in report.parts if part.replaced] == ["fp16", *["fp16, CUDA graphs"] * 3]
    return wrapper, before


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert relative_error(actual[name], value) < 5e-3, name


def test_frames_of_changing_sources(accelerated: tuple[Any, list[dict[str, Tensor]]]) -> None:
    wrapper, before = accelerated
    order = [0, 1, 0, 2, 2, 1]
    answers = [programs.frame(wrapper, seed) for seed in order]
    for seed, answer in zip(order, answers, strict=True):  # after all of them: none was overwritten
        assert_close(answer, before[seed])
    assert_same(answers[2], answers[0])
    lpkernels.restore(wrapper)
    for name in NETWORKS:
        assert "forward" not in vars(getattr(wrapper, name))


def test_autocast_decides_the_dtypes() -> None:
    wrapper = programs.wrapper(half=True, device="cuda")
    image, kp = torch.rand(1, 3, 64, 64, device="cuda"), torch.zeros(1, 21, 3, device="cuda")

    def dtypes() -> list[torch.dtype]:
        with torch.no_grad(), wrapper.inference_ctx():
            feature_3d = wrapper.appearance_feature_extractor(image)
            warped = wrapper.warping_module(feature_3d, kp_source=kp, kp_driving=kp)
            answers = [feature_3d, *wrapper.motion_extractor(image).values(), *warped.values()]
            return [value.dtype for value in [*answers, wrapper.spade_generator(feature=warped["out"])]]

    expected = dtypes()
    lpkernels.accelerate(wrapper)
    assert dtypes() == expected


def test_other_streams_and_threads(accelerated: tuple[Any, list[dict[str, Tensor]]]) -> None:
    wrapper, before = accelerated
    answers: list[tuple[int, dict[str, Tensor]]] = []

    def work(seed: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(5):
                answers.append((seed, programs.frame(wrapper, seed)))
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 15
    for seed, answer in answers:
        assert_close(answer, before[seed])


def test_a_callers_own_capture_holds_the_kernels() -> None:
    network = programs.network("spade_generator").cuda()
    lpkernels.accelerate(network)
    feature = torch.randn(1, 64, 16, 16, device="cuda")
    network(feature)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = network(feature)
    feature.normal_()
    graph.replay()
    assert relative_error(answer, network(feature)) < 1e-3
