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
    return compiled("walk", tmp_path_factory)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program images.cpp, compiled."""
    return compiled("images", tmp_path_factory)


def compiled(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp(name) / name
    source = Path(__file__).with_name(f"{name}.cpp")
    subprocess.run([compiler, "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    return program


SAME, FROM_CLASSES = range(2)  # enum class Grid
PHASES = (1, 16)
LARGER = (1, 4)  # rows of y for one of the tiles' grid


def run(program: Path, x: Tensor, weight: Tensor, grid: int = SAME, **how: int) -> Tensor:
    """The kernel's answer for x (B, D, H, W, stride) and weight (phases * O, taps..., C)."""
    case = {"split": 1, "tile_w": 0, "tile_h": 0, "block_m": 128, "permuted": 1, "width": 8, **how}
    small = 3 if grid == FROM_CLASSES else 1
    batch, depth, height, width, stride = x.shape
    height, width, outputs = height // small, width // small, weight.shape[0] // PHASES[grid]
    numbers = [batch, depth, height, width, weight.shape[4], outputs, *weight.shape[1:4], grid]
    numbers += [case[name] for name in ("split", "tile_w", "tile_h", "block_m", "block_n")]
    numbers += [stride, case["permuted"], case["width"]]
    text = " ".join(map(str, [*numbers, *x.flatten().tolist(), *weight.flatten().tolist()]))
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True)
    y = torch.tensor([float(line) for line in done.stdout.split()])
    return y.reshape(batch, depth, LARGER[grid] * height, LARGER[grid] * width, outputs)


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


@pytest.mark.parametrize(
    ("outputs", "height", "width", "tile"),
    [
        (32, 3, 5, {"tile_w": 8, "tile_h": 4}),
        (64, 3, 5, {"tile_w": 8, "tile_h": 4}),
        (32, 1, 65, {}),
        (32, 65, 1, {}),
    ],
)
def test_from_classes(walk: Path, outputs: int, height: int, width: int, tile: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(-4, 5, (2, 1, 3 * height, 3 * width, 16), generator=generator).float()
    original = torch.randint(-4, 5, (outputs, 1, 3, 3, 16), generator=generator).float()
    sizes = height, width
    rows, columns = ((3 * torch.arange(size)[:, None] + torch.tensor([0, 1, 1, 2])).flatten() for size in sizes)
    expected = conv3d(classes[:, :, rows][:, :, :, columns], original)
    weight = phases_of(original, FROM)
    assert torch.equal(run(walk, classes, weight, FROM_CLASSES, block_n=64, **tile), expected)


@pytest.mark.parametrize(
    "sizes",
    [(8, 8, 8), (4, 16, 16), (2, 64, 64), (5, 3, 7), (3, 1, 1), (2, 9, 10), (2, 5, 33), (1, 20, 130), (3, 70, 1)],
)
def test_tiles_of_images(images: Path, sizes: tuple[int, int, int]) -> None:
    done = subprocess.run([images, *map(str, sizes)], capture_output=True, text=True, check=True)
    first, *rows = done.stdout.splitlines()
    tiles, pixels = int(first), [tuple(map(int, row.split())) for row in rows]
    batch, height, width = sizes
    assert sorted(pixel[:3] for pixel in pixels) == [
        (b, h, w) for b in range(batch) for h in range(height) for w in range(width)
    ]
    assert all(image == of_warpgroup == sums // tiles for image, _, _, of_warpgroup, sums in pixels)
    assert {sums for *_, sums in pixels} == set(range(batch * tiles))


def enlarged(x: Tensor, scale: int) -> Tensor:
    return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


# Per phase of an axis: the weight's three taps (rows), and the stored taps they are summed into.
_ALL = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
FROM = [_ALL, [[1, 0, 0], [0, 1, 0], [0, 1, 0]], [[1, 0, 0], [1, 0, 0], [0, 1, 0]], _ALL]


def phases_of(weight: Tensor, axis: list[list[list[int]]]) -> Tensor:
    """(O, d, 3, 3, C) -> (phases * O, d, taps, taps, C): taps that hit the same pixel summed, per axis."""
    sums = torch.tensor(axis, dtype=weight.dtype)
    return torch.einsum("odhwc,phi,qwj->pqodijc", weight, sums, sums).flatten(0, 2)
