"""The fused SPADE decoder against the published one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lpkernels import ops
from lpkernels.fused import _layers
from lpkernels.fused.spade_decoder import FusedSPADEDecoder, FusedSPADEUpBlock
from lpkernels.models import LivePortrait, LivePortraitConfig
from lpkernels.models.blocks import SPADEResnetBlock
from tests.fused.networks import (
    channels_last,
    exact_ops,
    feature,
    in_double,
    relative_error,
    shares_products_of_rows,
    state_of,
    tiny,
)
from tests.ops import contract


def fused(
    model: LivePortrait | None = None, dtype: torch.dtype = torch.float32, classes: bool | None = None
) -> FusedSPADEDecoder:
    return FusedSPADEDecoder((model or tiny()).spade_generator, dtype, classes)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("batch", [1, 2])
def test_matches_the_baseline(batch: int) -> None:
    image = fused()(channels_last(feature(batch)))
    assert image.dtype == torch.float32
    assert relative_error(image, tiny().decode(feature(batch))) <= 1e-4


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("classes", [False, True])
def test_is_exact(monkeypatch: pytest.MonkeyPatch, classes: bool, winograd: bool) -> None:
    monkeypatch.setattr(_layers, "ops", exact_ops(winograd))
    network = fused(dtype=torch.float64, classes=classes)
    came = network(channels_last(feature().double()))
    assert relative_error(came, in_double(tiny().spade_generator)(feature().double())) <= 1e-9
    blocks = ("up_0",) if classes else ("up_0", "up_1")
    layers = [f"{block}.{name}" for block in blocks for name in ("conv_0", "conv_1", "norm_0", "norm_1")]
    shared = {"fc", "middle", "last", *layers}
    assert shares_products_of_rows(network) == (shared if winograd else set())
    spade_weights = network.fc.spade_weight, network.middle.spade_weight[0]
    assert [weight.dim() for weight in spade_weights] == 2 * [3 if winograd else 4]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("changes", [{"upscale": 1}, {"out_channels": 64}])
def test_variants(changes: dict[str, int], classes: bool) -> None:
    """Without a pixel shuffle; and with a last block that keeps its width, so that it has no shortcut of its own."""
    model = tiny(**changes)
    assert model.spade_generator.up_1.learned_shortcut == ("upscale" in changes)
    image = fused(model, classes=classes)(channels_last(feature(side=8)))
    assert relative_error(image, model.decode(feature(side=8))) <= 1e-4


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("want_stats", [False, True])
def test_the_published_widths_have_their_shortcut_in_one_op(monkeypatch: pytest.MonkeyPatch, want_stats: bool) -> None:
    """The last block in float16 from classes: with the kernel's op and with the three calls it stands for."""
    torch.manual_seed(0)
    baseline = SPADEResnetBlock(256, 64, 16).eval()
    small, x = torch.randn(2, 3, 5, 16).half(), torch.randn(2, 6, 10, 256).half()
    stats = ops.instance_norm_stats(x)
    block = FusedSPADEUpBlock(baseline, 4, 0.2, torch.float16, classes=True)
    assert [name for name, layer in block.named_children() if name.endswith(("_s", "shortcut"))] == ["shortcut"]
    monkeypatch.setattr(ops, "fuses_shortcut", lambda *_: False)
    apart = FusedSPADEUpBlock(baseline, 4, 0.2, torch.float16, classes=True)
    assert apart.shortcut is None
    with torch.no_grad():
        for came, expected in zip(*(each(x, stats, small, want_stats) for each in (block, apart)), strict=True):
            assert (came is None) == (expected is None)
            assert came is None or relative_error(came, expected) <= 1e-3


def test_not_square() -> None:
    wide = feature()[:, :, :8]
    assert relative_error(fused()(channels_last(wide)), tiny().decode(wide)) <= 1e-4


@pytest.mark.usefixtures("poisoned")
def test_bytes_are_the_picture() -> None:
    network = fused()
    picture, image = (network(channels_last(feature(2)), as_uint8=kind) for kind in (True, False))
    assert picture.dtype == torch.uint8
    assert picture.shape == (2, 128, 128, 3)
    assert ((picture.float() / 255).permute(0, 3, 1, 2) - image).abs().max() <= 1.001 / 255


def test_classes_are_left_to_the_kernels_made_for_them() -> None:
    assert not fused().up_1.mlp_shared.classes
    assert not fused(dtype=torch.float16).up_1.mlp_shared.classes


def test_the_baseline_stays_as_it_is() -> None:
    before = state_of(tiny().spade_generator)
    network = fused()
    network.fc.weight.zero_()
    after = tiny().spade_generator.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_upsampled_planes_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up blocks' norms read x at half size, and the shortcut's beta conv is a part of conv_1."""
    seen: dict[str, tuple[int, ...]] = {}
    network = fused()

    def note(name: str) -> None:
        layer = network.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, inputs: seen.update({name: tuple(inputs[-2].shape[1:3])}))

    for name in ("up_0.norm_0", "up_0.norm_s", "up_1.norm_0", "up_1.norm_s"):
        note(name)
    network(channels_last(feature()))
    assert seen == {"up_0.norm_0": (16, 16), "up_0.norm_s": (16, 16), "up_1.norm_0": (32, 32), "up_1.norm_s": (32, 32)}
    assert network.up_0.conv_1.weight.shape == (64, 3, 3, 128 + 64)


@pytest.fixture(scope="module")
def full() -> LivePortrait:
    return LivePortrait.random(0, LivePortraitConfig.full(), device="cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("batch", [1, 2])
def test_half_within_pytorchs_own_error(full: LivePortrait, batch: int) -> None:
    half = copy.deepcopy(full.spade_generator).half()
    x = feature(batch, 256, 64).cuda()
    with torch.no_grad():
        truth, own = full.spade_generator(x), half(x.half())
    network = fused(full, torch.float16)
    bound = 1.5 * relative_error(own, truth) + contract.ULPS[torch.float16]
    assert relative_error(network(channels_last(x.half())), truth) <= bound


@pytest.mark.gpu
def test_graph_capture(full: LivePortrait) -> None:
    network = fused(full, torch.float16)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        return (network(x, as_uint8=True),)

    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)

    contract.check_graph_capture(call, [channels_last(feature(1, 256, 64).cuda().half())], change)
