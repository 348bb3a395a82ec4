"""Blocks against their equations and PyTorch's own modules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lpkernels.models.blocks import Hourglass, SpectralConv2d, kp2gaussian, make_coordinate_grid
from lpkernels.models.convnextv2 import GRN, LayerNorm

DIMENSION = st.integers(2, 7)


@settings(max_examples=25, deadline=None)
@given(depth=DIMENSION, height=DIMENSION, width=DIMENSION)
def test_coordinate_grid(depth: int, height: int, width: int) -> None:
    grid = make_coordinate_grid((depth, height, width), torch.zeros(1, dtype=torch.float64))
    assert grid.shape == (depth, height, width, 3)
    assert grid.dtype == torch.float64
    for z in (0, depth // 2, depth - 1):
        for y in (0, height - 1):
            for x in (0, width // 2):
                expected = [2 * i / (n - 1) - 1 for i, n in ((x, width), (y, height), (z, depth))]
                torch.testing.assert_close(grid[z, y, x], torch.tensor(expected, dtype=torch.float64))


def test_gaussian_is_the_equations() -> None:
    kp = torch.tensor([[[1.0, -1.0, 0.0], [0.25, 0.5, -0.75]]])
    heat = kp2gaussian(kp, (3, 4, 5), 0.01)
    assert heat.shape == (1, 2, 3, 4, 5)
    assert heat[0, 0, 1, 0, 4] == 1.0  # the first keypoint lies on this voxel
    x, y, z = 0.0 - 0.25, 1 / 3 - 0.5, -1.0 + 0.75
    expected = math.exp(-0.5 * (x * x + y * y + z * z) / 0.01)
    torch.testing.assert_close(heat[0, 1, 0, 2, 2].item(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("kernel_size", "bias"), [(3, True), (1, False)])
def test_spectral_conv_is_torchs_spectral_norm(kernel_size: int, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.utils.spectral_norm(nn.Conv2d(5, 7, kernel_size, padding=kernel_size // 2, bias=bias))
    theirs(torch.randn(1, 5, 4, 4))  # one power iteration, so that u and v are not at their start
    theirs.eval()
    ours = SpectralConv2d(5, 7, kernel_size, padding=kernel_size // 2, bias=bias)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 6, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    before = ours.weight_u.clone()
    ours.train()(x)
    assert torch.equal(ours.weight_u, before), "u must not be iterated"


def test_fresh_spectral_conv_runs() -> None:
    assert SpectralConv2d(3, 4, 3, padding=1)(torch.randn(1, 3, 5, 5)).isfinite().all()


def test_layer_norm_formats_agree_with_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 5)
    norm = nn.LayerNorm(6, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = norm(x.permute(0, 2, 3, 1))
    for channels_first in (False, True):
        ours = LayerNorm(6, channels_first=channels_first)
        ours.load_state_dict(norm.state_dict())
        came = ours(x).permute(0, 2, 3, 1) if channels_first else ours(x.permute(0, 2, 3, 1))
        torch.testing.assert_close(came, expected)


def test_grn_is_the_equation() -> None:
    torch.manual_seed(0)
    grn = GRN(4)
    nn.init.normal_(grn.gamma)
    nn.init.normal_(grn.beta)
    x = torch.randn(2, 3, 5, 4)
    response = x.pow(2).sum((1, 2)).sqrt()
    normalized = response / (response.mean(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(grn(x), grn.gamma * x * normalized[:, None, None] + grn.beta + x)


@settings(max_examples=5, deadline=None)
@given(batch=st.integers(1, 2), depth=st.integers(1, 3), height=st.integers(1, 3), width=st.integers(1, 3))
def test_hourglass_keeps_the_grid(batch: int, depth: int, height: int, width: int) -> None:
    hourglass = Hourglass(2, 3, num_blocks=2, max_features=6).eval()
    out = hourglass(torch.zeros(batch, 3, depth, 4 * height, 4 * width))
    assert out.shape == (batch, hourglass.out_filters, depth, 4 * height, 4 * width)
    assert hourglass.out_filters == 5
    widths = [block.conv.out_channels for block in hourglass.encoder.down_blocks]
    assert widths == [4, 6], "capped at max_features"
