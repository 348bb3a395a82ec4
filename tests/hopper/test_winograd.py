"""The walk of the Hopper convolutions whose rows share products, without a GPU: every product, one at a time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from lpkernels import ops
from tests.hopper.test_conv_shape import compiled, conv3d

OUTPUTS = 5


@pytest.fixture(scope="module")
def winograd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program winograd.cpp, compiled."""
    return compiled("winograd", tmp_path_factory)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("grid", "channels", "depth"),
    [
        ((2, 1, 5, 3), 16, 1),
        ((1, 1, 7, 66), 64, 1),
        ((1, 1, 9, 5), 48, 1),
        ((1, 1, 1, 1), 112, 1),
        ((1, 1, 4, 64), 128, 1),
        ((2, 1, 6, 9), 144, 1),
        ((1, 3, 5, 4), 32, 3),
        ((2, 2, 3, 5), 112, 3),
        ((1, 2, 6, 3), 48, 3),
        ((1, 1, 9, 2), 128, 3),
        ((1, 3, 4, 7), 144, 3),
    ],
)
def test_every_product_is_where_it_belongs(
    winograd: Path, grid: tuple[int, ...], channels: int, depth: int, together: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    stride = channels + 8
    x = torch.full((*grid, stride), float("nan"))  # beyond the channels nothing is read
    x[..., :channels] = torch.randint(-3, 4, (*grid, channels), generator=generator).float()
    weight = 2 * torch.randint(-3, 4, (OUTPUTS, depth, 3, 3, channels), generator=generator).float()  # half sums whole
    packed = ops.pack_winograd_weight(weight if depth == 3 else weight[:, 0], together)
    numbers = [
        int(together),
        *grid,
        stride,
        channels,
        OUTPUTS,
        depth,
        *x.flatten().tolist(),
        *packed.flatten().tolist(),
    ]
    text = " ".join(map(str, numbers))
    done = subprocess.run([winograd], input=text, capture_output=True, text=True, check=True)
    y = torch.tensor([float(line) for line in done.stdout.split()]).reshape(*grid, OUTPUTS)
    assert torch.equal(y, conv3d(x[..., :channels], weight))
