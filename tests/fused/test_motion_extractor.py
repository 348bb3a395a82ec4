"""The fused motion extractor against the published one."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lpkernels import ops, ref
from lpkernels.fused import _layers
from lpkernels.fused.motion_extractor import FusedMotionExtractor
from lpkernels.models import LivePortrait, LivePortraitConfig
from lpkernels.models.convnextv2 import ConvNeXtV2
from tests.fused.networks import in_double, relative_error, state_of, tiny
from tests.ops import contract

OPS = ("patch_norm", "convnext_stage", "pool_norm_linear")


def picture(batch: int = 1, height: int = 64, width: int = 64) -> Tensor:
    """Frames, uint8 (B, H, W, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)


def as_image(frames: Tensor) -> Tensor:
    return frames.permute(0, 3, 1, 2).float() / 255


def fused(model: LivePortrait | None = None, dtype: torch.dtype = torch.float32) -> FusedMotionExtractor:
    return FusedMotionExtractor((model or tiny()).motion_extractor, dtype)


def rows(heads: dict[str, Tensor]) -> Tensor:
    return torch.cat([heads[name] for name in ConvNeXtV2.HEADS], dim=1)


def together(answers: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = list(answers)
    return {name: torch.cat([part[name] for part in parts]) for name in ConvNeXtV2.HEADS}


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (3, 41, 70)])
def test_matches_the_baseline(shape: tuple[int, ...]) -> None:
    image = as_image(picture(*shape))
    expected, came = tiny().motion_extractor(image), fused()(image)
    assert list(came) == list(ConvNeXtV2.HEADS)
    for name, head in came.items():
        assert head.dtype == torch.float32
        assert head.shape == expected[name].shape
        assert relative_error(head, expected[name]) <= 1e-4


def test_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layers, "ops", SimpleNamespace(**{name: getattr(ref, name) for name in OPS}))
    image = as_image(picture(2)).double()
    came = fused(dtype=torch.float64)(image)
    for name, head in in_double(tiny().motion_extractor)(image).items():
        assert relative_error(came[name], head) <= 1e-9


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_matches_the_baseline(dtype: torch.dtype) -> None:
    frames = picture(2, 33, 36)
    expected = rows(tiny().motion_extractor(as_image(frames)))
    with ops.use_backend("triton"):
        came = fused(dtype=dtype).heads(frames)
    assert relative_error(came, expected) <= (1e-4 if dtype == torch.float32 else 5e-3)


@pytest.mark.usefixtures("poisoned")
def test_heads_are_one_row() -> None:
    frames, network = picture(2), fused()
    heads = network.heads(frames)
    assert heads.shape == (2, 3 * 66 + 6 * 21 + 4)
    assert relative_error(heads, rows(tiny().motion_extractor(as_image(frames)))) <= 1e-4
    assert relative_error(heads, rows(network(as_image(frames)))) <= 1e-4
    parts = network.split(heads)
    assert torch.equal(rows(parts), heads)
    assert all(part.untyped_storage().data_ptr() == heads.untyped_storage().data_ptr() for part in parts.values())


def test_the_baseline_stays_as_it_is() -> None:
    before = state_of(tiny().motion_extractor)
    network = fused()
    for buffer in network.buffers():
        buffer.zero_()
    after = tiny().motion_extractor.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_op_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noted(name: str) -> object:
        def run(**arguments: Tensor) -> object:
            calls.append(name)
            return getattr(ops, name)(**arguments)

        return run

    monkeypatch.setattr(_layers, "ops", SimpleNamespace(**{name: noted(name) for name in OPS}))
    fused().heads(picture())
    stages = len(tiny().config.motion_extractor.depths)
    assert calls == ["patch_norm", *["convnext_stage"] * stages, "pool_norm_linear"]


@pytest.fixture(scope="module")
def full() -> LivePortrait:
    """The published sizes on the GPU."""
    return LivePortrait.random(0, LivePortraitConfig.full(), "cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_published_sizes_within_pytorchs_own_error(full: LivePortrait, dtype: torch.dtype, batch: int) -> None:
    # A head of three numbers says little about a single picture: the errors are those over a dozen.
    frames = picture(12, 256, 256).cuda()
    truth = in_double(copy.deepcopy(full.motion_extractor))(as_image(frames).double())
    with torch.no_grad(), torch.autocast("cuda", dtype=dtype):
        own = together(full.motion_extractor(as_image(part)) for part in frames.split(batch))
    network = fused(full, dtype)
    for came in (
        together(network(as_image(part)) for part in frames.split(batch)),
        together(network.split(network.heads(part)) for part in frames.split(batch)),
    ):
        for name, head in came.items():
            bound = 1.5 * relative_error(own[name], truth[name]) + contract.ULPS[dtype]
            assert relative_error(head, truth[name]) <= bound, name


@pytest.mark.gpu
def test_graph_capture_repeatability_and_a_second_stream(full: LivePortrait) -> None:
    network, frames = fused(full, torch.float16), picture(1, 256, 256).cuda()

    def run(*inputs: Tensor) -> tuple[Tensor]:
        return (network.heads(*inputs),)

    def change(inputs: contract.Inputs) -> None:
        inputs[0].copy_(255 - inputs[0])

    contract.check_repeatable(run, [frames])
    contract.check_second_stream(run, [frames])
    contract.check_graph_capture(run, [frames], change)
