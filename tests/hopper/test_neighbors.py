"""The walk of upsample_conv's Hopper kernel through its work, without a GPU: every product, one at a time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lpkernels import rewrites
from tests.hopper.test_conv_shape import compiled, conv3d, enlarged


@pytest.fixture(scope="module")
def neighbors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program neighbors.cpp, compiled."""
    return compiled("neighbors", tmp_path_factory)


def run(program: Path, x: Tensor, products: Tensor, channels: int, side: int, split: int = 1) -> Tensor:
    """The kernel's answer for x (B, D, H, W, stride) and products (3, 3, O, d, C), ``side`` rows for one of x."""
    batch, depth, height, width, stride = x.shape
    outputs, taps_d = products.shape[2:4]
    numbers = [batch, depth, height, width, channels, outputs, taps_d, split, side, stride]
    text = " ".join(map(str, [*numbers, *x.flatten().tolist(), *products.flatten().tolist()]))
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    y = torch.tensor([float(line) for line in done.stdout.split()])
    return y.reshape(batch, depth, side * height, side * width, outputs)


@pytest.mark.parametrize(
    ("grid", "channels", "outputs", "taps_d", "side", "split"),
    [
        ((1, 1, 3, 5), 8, 64, 1, 2, 1),
        ((2, 1, 3, 5), 8, 32, 1, 3, 1),
        ((1, 1, 2, 3), 16, 32, 1, 4, 1),
        ((1, 3, 2, 2), 72, 32, 3, 2, 3),
        ((1, 1, 9, 17), 8, 32, 1, 2, 1),
        ((1, 1, 10, 33), 8, 32, 1, 3, 1),
        ((1, 2, 1, 18), 8, 32, 3, 2, 1),
        ((1, 1, 130, 1), 8, 32, 1, 2, 1),
    ],
)
def test_every_product_is_where_it_belongs(
    neighbors: Path, grid: tuple[int, ...], channels: int, outputs: int, taps_d: int, side: int, split: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(-4, 5, (*grid, channels + 8), generator=generator).float()
    weight = torch.randint(-4, 5, (outputs, taps_d, 3, 3, channels), generator=generator).float()
    products = rewrites.upsample_conv_products(weight.movedim(-1, 1)).movedim(3, -1)
    expected = conv3d(enlarged(wide[..., :channels], 2 if side == 2 else 4), weight)
    if side == 3:
        rows, columns = (torch.arange(4 * size).reshape(-1, 4)[:, [0, 1, 3]].flatten() for size in grid[2:])
        expected = expected[:, :, rows][:, :, :, columns]
    assert torch.equal(run(neighbors, wide, products, channels, side, split), expected)
