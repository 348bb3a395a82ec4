"""The walk of mask_conv3d's Hopper kernel through its work, without a GPU: every product, one at a time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from lpkernels import ops
from tests.hopper.test_conv_shape import compiled, conv3d


@pytest.fixture(scope="module")
def row_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program row_pairs.cpp, compiled."""
    return compiled("row_pairs", tmp_path_factory)


@pytest.mark.parametrize("grid", [(1, 2, 5, 3), (2, 1, 4, 9), (1, 1, 1, 64)])
def test_every_product_is_where_it_belongs(row_pairs: Path, grid: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (*grid, 144), generator=generator).float()
    weight = 2 * torch.randint(-3, 4, (22, 144, 7, 7, 7), generator=generator).float()  # half sums are integers
    text = " ".join(map(str, [*grid, *x.flatten().tolist(), *ops.pack_mask_row_pairs(weight).flatten().tolist()]))
    done = subprocess.run([row_pairs], input=text, capture_output=True, text=True, check=True)
    columns = torch.tensor([float(line) for line in done.stdout.split()]).reshape(*grid, 160)
    expected = conv3d(x, ops.pack_mask_weight(weight).unsqueeze(3))
    assert torch.equal(columns, expected)
