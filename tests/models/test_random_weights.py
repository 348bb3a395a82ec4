"""Random weights: the same for the same seed, others for another, and in a trained model's range."""

from __future__ import annotations

import pytest
import torch

from lpkernels.models import LivePortrait, LivePortraitConfig
from lpkernels.models.blocks import SpectralConv2d


def test_seed_decides(tiny: LivePortrait) -> None:
    again = LivePortrait.random(0, LivePortraitConfig.tiny()).state_dict()
    other = LivePortrait.random(1, LivePortraitConfig.tiny()).state_dict()
    for key, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, again[key]), key
        assert torch.equal(tensor, other[key]) == key.endswith("num_batches_tracked"), key


def test_every_tensor_is_its_own(tiny: LivePortrait) -> None:
    blocks = [tiny.spade_generator.get_submodule(f"G_middle_{i}.conv_0") for i in range(6)]
    firsts = {block.weight_orig[0, 0, 0, 0].item() for block in blocks}  # type: ignore[union-attr,index]
    assert len(firsts) == 6


def test_spectral_norm_is_close_to_the_true_one(tiny: LivePortrait) -> None:
    for module in tiny.spade_generator.modules():
        if isinstance(module, SpectralConv2d):
            norm = torch.linalg.matrix_norm(module.normalized_weight().flatten(1), ord=2)
            assert 0.99 < norm.item() < 1.25


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_answers_are_in_range(seed: int) -> None:
    model = LivePortrait.random(seed, LivePortraitConfig.tiny())
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    heads = model.extract_motion(image)
    kp = heads["kp"].unflatten(1, (21, 3))
    assert 0.05 < kp.std() < 0.6
    assert heads["exp"].abs().max() < 0.2
    assert heads["t"].abs().max() < 0.3
    assert ((heads["scale"] > 0.8) & (heads["scale"] < 1.8)).all()
    assert model.stitch(torch.cat([heads["kp"], heads["kp"]], dim=1)).abs().max() < 0.1
    rgb = model.warp_decode(model.extract_feature_3d(image), kp, kp + 0.05)
    assert 0.2 < rgb.mean() < 0.8
    assert 0.05 < rgb.std() < 0.4
