"""The Hopper convolution's walk through its work, without a GPU: every product of the kernel, one at a time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program walk.cpp, compiled."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("walk") / "walk"
    source = Path(__file__).with_name("walk.cpp")
    subprocess.run([compiler, "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    return program


def run(program: Path, x: Tensor, weight: Tensor, **how: int) -> Tensor:
    """The kernel's answer for x (B, D, H, W, stride) and weight (phases * O, taps..., C)."""
    case = {"scale": 1, "split": 1, "tile_w": 0, "tile_h": 0, "block_m": 128, "permuted": 1, "width": 8, **how}
    batch, depth, height, width, stride = x.shape
    scale = case["scale"]
    outputs = weight.shape[0] // {1: 1, 2: 4, 4: 9}[scale]
    numbers = [batch, depth, height, width, weight.shape[4], outputs, *weight.shape[1:4], scale, case["split"]]
    numbers += [case[name] for name in ("tile_w", "tile_h", "block_m", "block_n")]
    numbers += [stride, case["permuted"], case["width"]]
    text = " ".join(map(str, [*numbers, *x.flatten().tolist(), *weight.flatten().tolist()]))
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    y = torch.tensor([float(line) for line in done.stdout.split()])
    return y.reshape(batch, depth, scale * height, scale * width, outputs)


def conv3d(x: Tensor, weight: Tensor) -> Tensor:
    """(B, D, H, W, C) and (O, taps..., C), padding half of each axis's taps."""
    padding = [taps // 2 for taps in weight.shape[1:4]]
    y = F.conv3d(x.permute(0, 4, 1, 2, 3), weight.permute(0, 4, 1, 2, 3), padding=padding)
    return y.permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize(
    ("grid", "channels", "taps", "outputs", "how"),
    [
        ((1, 1, 8, 24), 72, (1, 3, 3), 32, {"block_n": 64}),
        ((2, 1, 5, 7), 8, (1, 3, 3), 96, {"block_n": 32, "block_m": 256}),
        ((1, 3, 6, 5), 16, (3, 3, 3), 48, {"block_n": 48, "width": 4}),
        ((1, 3, 6, 5), 144, (3, 1, 1), 12, {"block_n": 16, "permuted": 0}),
        ((2, 5, 4, 4), 64, (3, 3, 3), 32, {"block_n": 32, "split": 8, "permuted": 0}),
        ((1, 2, 10, 12), 24, (3, 3, 3), 32, {"block_n": 32, "tile_w": 8, "tile_h": 8}),
    ],
)
def test_every_product_is_where_it_belongs(
    walk: Path,
    grid: tuple[int, ...],
    channels: int,
    taps: tuple[int, int, int],
    outputs: int,
    how: dict[str, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(-4, 5, (*grid, channels + 8), generator=generator).float()
    weight = torch.randint(-4, 5, (outputs, *taps, channels), generator=generator).float()
    assert torch.equal(run(walk, wide, weight, **how), conv3d(wide[..., :channels], weight))


@pytest.mark.parametrize(("scale", "split"), [(2, 1), (4, 1), (2, 2)])
def test_sub_pixel_phases(walk: Path, scale: int, split: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-4, 5, (1, 2, 3, 5, 8), generator=generator).float()
    original = torch.randint(-4, 5, (32, 3, 3, 3, 8), generator=generator).float()
    large = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    weight = phases_of(original, scale)
    actual = run(walk, x, weight, scale=scale, split=split, block_n=64, permuted=int(split == 1))
    assert torch.equal(actual, conv3d(large, original))


def phases_of(weight: Tensor, scale: int) -> Tensor:
    """(O, 3, 3, 3, C) -> (phases * O, 3, 2, 2, C): taps that hit the same small pixel summed, per axis."""
    # Rows: large taps -1, 0, 1 of a phase's first residue; columns: the two small taps they are summed into.
    first, middle, last = [[1, 0], [0, 1], [0, 1]], [[0, 1], [0, 1], [0, 1]], [[1, 0], [1, 0], [0, 1]]
    axes = torch.tensor([first, last] if scale == 2 else [first, middle, last], dtype=weight.dtype)
    return torch.einsum("odhwc,phi,qwj->pqodijc", weight, axes, axes).flatten(0, 2)
