"""The fused warping module against the published one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lpkernels.fused import _layers, warping_network
from lpkernels.fused.warping_network import FusedWarpingNetwork, WarpResult, WarpSource
from lpkernels.models import LivePortrait, LivePortraitConfig
from tests.fused.networks import (
    exact_ops,
    in_double,
    keypoints,
    relative_error,
    shares_products_of_rows,
    state_of,
    tiny,
    volume,
)
from tests.ops import contract


def fused(model: LivePortrait | None = None, dtype: torch.dtype = torch.float32) -> FusedWarpingNetwork:
    return FusedWarpingNetwork((model or tiny()).warping_module, dtype)


def assert_same_maps(came: WarpResult, expected: dict[str, Tensor | None], tolerance: float) -> None:
    out, deformation, occlusion_map = expected["out"], expected["deformation"], expected["occlusion_map"]
    assert out is not None
    assert deformation is not None
    assert relative_error(came.out.permute(0, 3, 1, 2), out) <= tolerance
    assert relative_error(came.deformation, deformation) <= tolerance
    assert (came.occlusion_map is None) == (occlusion_map is None)
    if came.occlusion_map is not None and occlusion_map is not None:
        assert relative_error(came.occlusion_map[:, None], occlusion_map) <= tolerance


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("batch", "changes"), [(1, {}), (2, {}), (2, {"occlusion": False}), (1, {"expansion": 5, "compress": 3})]
)
def test_matches_the_baseline(batch: int, changes: dict[str, int]) -> None:
    """As many sources as driving poses; no occlusion map; widths that leave padding inside the buffers."""
    model, (kp_source, kp_driving) = tiny(**changes), keypoints(batch)
    network = fused(model)
    came = network(network.prepare(volume(batch)), kp_source, kp_driving, want_maps=True)
    assert_same_maps(came, model.warp(volume(batch), kp_source, kp_driving), 1e-4)


@pytest.mark.parametrize("winograd", [False, True])
def test_is_exact(monkeypatch: pytest.MonkeyPatch, winograd: bool) -> None:
    for module in (_layers, warping_network):
        monkeypatch.setattr(module, "ops", exact_ops(winograd))
    model = tiny(expansion=16)  # in whole slices of 16 channels, as winograd needs them
    network, baseline = fused(model, torch.float64), in_double(model.warping_module)
    feature_3d, (kp_source, kp_driving) = volume().double(), (kp.double() for kp in keypoints())
    with torch.no_grad():
        expected = baseline(feature_3d, kp_driving=kp_driving, kp_source=kp_source)
    came = network(network.prepare(feature_3d), kp_source, kp_driving, want_maps=True)
    assert_same_maps(came, expected, 1e-9)
    shared = {"hourglass.conv", "hourglass.down_blocks.0"} if winograd else set()
    assert shares_products_of_rows(network) == shared


def test_one_source_for_many_poses() -> None:
    """Batch 1 as it is, its keypoints too, or expanded without a copy: all give the answer of three copies."""
    network, (kp_source, kp_driving) = fused(), keypoints(3)
    source, one = network.prepare(volume()), kp_source[:1]
    expected = tiny().warp(volume().expand(3, -1, -1, -1, -1), one.expand(3, -1, -1), kp_driving)["out"]
    assert expected is not None
    wide = source.expand(3)
    assert [tensor.data_ptr() for tensor in wide.tensors().values()] == [
        tensor.data_ptr() for tensor in source.tensors().values()
    ]
    for came in (network(source, one, kp_driving), network(wide, one.expand(3, -1, -1), kp_driving)):
        assert relative_error(came.permute(0, 3, 1, 2), expected) <= 1e-4


def test_not_square() -> None:
    network, (kp_source, kp_driving) = fused(), keypoints()
    wide = volume()[..., :8, :]
    expected = tiny().warp(wide, kp_source, kp_driving)["out"]
    assert expected is not None
    came = network(network.prepare(wide), kp_source, kp_driving)
    assert relative_error(came.permute(0, 3, 1, 2), expected) <= 1e-4


def test_the_answer_is_channels_last() -> None:
    network, (kp_source, kp_driving) = fused(), keypoints(2)
    out = network(network.prepare(volume(2)), kp_source, kp_driving)
    assert out.is_contiguous()
    assert out.shape == (2, 16, 16, 64)


def test_a_source_is_overwritten_in_place() -> None:
    network, (kp_source, kp_driving) = fused(), keypoints()
    source, other = network.prepare(volume()), network.prepare(volume(seed=5))
    before = source.volume.data_ptr()
    assert source.copy_(other) is source
    assert source.volume.data_ptr() == before
    assert torch.equal(network(source, kp_source, kp_driving), network(other, kp_source, kp_driving))


def test_sources_must_be_alike() -> None:
    network = fused()
    source = network.prepare(volume())
    with pytest.raises(ValueError, match="other must hold tensors of shapes"):
        source.copy_(network.prepare(volume(2)))
    named = WarpSource(source.volume, source.compressed, source.background, keypoints()[0])
    with pytest.raises(ValueError, match="kp_source"):
        named.copy_(source)


def test_the_baseline_stays_as_it_is() -> None:
    before = state_of(tiny().warping_module)
    network = fused()
    network.third.weight.zero_()
    network.prepare(volume()).volume.zero_()
    after = tiny().warping_module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("name", "rooms"),
    [("full", [144, 128, 256, 512, 1024, 1024]), ("small", [80, 32, 64, 64]), ("tiny", [80, 32, 64, 64])],
)
def test_buffers_of_every_level(name: str, rooms: list[int]) -> None:
    """Two parts to a level, 16-byte aligned, the sum in whole multiples of 16 channels."""
    with torch.device("meta"):
        hourglass = fused(LivePortrait(LivePortraitConfig.named(name)), torch.float16).hourglass
    buffers = hourglass.buffers_for(2, (16, 64, 64), torch.empty(0, dtype=torch.float16, device="meta"))
    assert [tuple(buffer.shape) for buffer in buffers] == [
        (2, 16, 64 >> level, 64 >> level, room) for level, room in enumerate(rooms)
    ]
    assert all(left % 8 == 0 and (left + right) % 16 == 0 for (_, left), (_, right) in hourglass.parts)


@pytest.fixture(scope="module")
def full() -> LivePortrait:
    return LivePortrait.random(0, LivePortraitConfig.full(), device="cuda")


def full_inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    kp_source, kp_driving = keypoints(batch)
    return torch.randn(batch, 32, 16, 64, 64, generator=generator).cuda(), kp_source.cuda(), kp_driving.cuda()


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("batch", [1, 2])
def test_half_within_pytorchs_own_error(full: LivePortrait, batch: int) -> None:
    feature_3d, kp_source, kp_driving = full_inputs(batch)
    half = copy.deepcopy(full.warping_module).half()
    with torch.no_grad():
        own = half(feature_3d.half(), kp_driving.half(), kp_source.half())
        truth = full.warping_module(feature_3d, kp_driving, kp_source)
    network = fused(full, torch.float16)
    came = network(network.prepare(feature_3d), kp_source, kp_driving, want_maps=True)
    assert came.occlusion_map is not None
    answers = {
        "out": came.out.permute(0, 3, 1, 2),
        "deformation": came.deformation,
        "occlusion_map": came.occlusion_map[:, None],
    }
    for name, answer in answers.items():
        bound = 1.5 * relative_error(own[name], truth[name]) + contract.ULPS[torch.float16]
        assert relative_error(answer, truth[name]) <= bound, name


@pytest.mark.gpu
def test_graph_capture(full: LivePortrait) -> None:
    network = fused(full, torch.float16)
    feature_3d, kp_source, kp_driving = full_inputs(1)
    source = network.prepare(feature_3d)

    def call(kp_driving: Tensor) -> tuple[Tensor, ...]:
        return (network(source, kp_source, kp_driving),)

    contract.check_graph_capture(call, [kp_driving], lambda inputs: inputs[0].add_(0.02))
