"""Sizes from shapes: the network that is built from them has exactly those shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lpkernels.integrations._networks import NETWORKS, Network, identify
from lpkernels.models.config import LivePortraitConfig


def variants() -> list[tuple[Network, Any]]:
    """Every network in the published sizes, in tiny ones, and with what is optional the other way."""
    full, tiny = LivePortraitConfig.full(), LivePortraitConfig.tiny()
    found = [(network, getattr(config, network.name)) for config in (full, tiny) for network in NETWORKS]
    _, _, warping, spade = NETWORKS
    no_occlusion = dataclasses.replace(tiny.warping_module, estimate_occlusion_map=False)
    odd_width = dataclasses.replace(tiny.warping_module, block_expansion=6, num_down_blocks=0)
    plain = dataclasses.replace(tiny.spade_generator, upscale=1)
    return [*found, (warping, no_occlusion), (warping, odd_width), (spade, plain)]


@pytest.mark.parametrize(("network", "config"), variants(), ids=lambda value: getattr(value, "name", ""))
def test_inferred_sizes_give_the_same_shapes(network: Network, config: Any) -> None:
    with torch.device("meta"):
        original = network.baseline(config)
    shapes = {key: tuple(value.shape) for key, value in original.state_dict().items()}
    with torch.device("meta"):
        again = network.baseline(network.infer(shapes))
    assert {key: tuple(value.shape) for key, value in again.state_dict().items()} == shapes
    assert identify(original) is network


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_published_sizes_are_inferred_exactly(network: Network) -> None:
    config = getattr(LivePortraitConfig.full(), network.name)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in network.baseline(config).state_dict().items()}
    assert network.infer(shapes) == config


def test_other_modules_are_not_identified() -> None:
    with torch.device("meta"):
        full = NETWORKS[2].baseline(LivePortraitConfig.full().warping_module)
    for module in (torch.nn.Linear(2, 2), torch.nn.Identity(), full.dense_motion_network, full.third):
        assert identify(module) is None
