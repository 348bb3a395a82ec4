"""The loops of products that rows share, without a GPU: their own code, run thread by thread."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from lpkernels import ops
from tests.hopper.emulator import compiled
from tests.hopper.test_conv_shape import conv3d

# Those of winograd_loops.cpp.
WIDE, WIDE_144, NARROW, NARROW_112, NARROW_80, WIDE_80 = range(6)
TOGETHER = (NARROW, NARROW_112, NARROW_80)


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program winograd_loops.cpp, compiled."""
    return compiled("winograd_loops", tmp_path_factory)


@pytest.mark.parametrize(
    ("loop", "grid", "channels", "outputs", "depth", "at_once"),
    [
        (WIDE, (1, 1, 12, 64), 128, 256, 1, 1),  # an odd number of tiles, one after the other
        (WIDE, (1, 2, 5, 64), 64, 128, 3, 9),
        (WIDE_80, (1, 3, 4, 64), 80, 128, 3, 1),
        (WIDE_144, (1, 1, 6, 70), 144, 144, 1, 1),
        (NARROW, (3, 1, 4, 64), 128, 128, 1, 1),
        (NARROW_80, (1, 3, 4, 64), 80, 64, 3, 1),
        (NARROW_112, (2, 1, 10, 5), 112, 64, 1, 2),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_loops(
    loops: Path,
    loop: int,
    grid: tuple[int, ...],
    channels: int,
    outputs: int,
    depth: int,
    at_once: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (*grid, channels), generator=generator).float()
    weight = 2 * torch.randint(-3, 4, (outputs, depth, 3, 3, channels), generator=generator).float()  # half sums whole
    packed = ops.pack_winograd_weight(weight if depth == 3 else weight[:, 0], loop in TOGETHER)
    data = b"".join(tensor.half().numpy().tobytes() for tensor in (x, packed))
    sizes = [loop, *grid, channels, outputs, depth, at_once, seed]
    done = subprocess.run([loops, *map(str, sizes)], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    y = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).reshape(*grid, outputs)
    assert torch.equal(y, conv3d(x, weight))
