"""The work of the Hopper convolutions' blocks: who has which tile and outputs, and when."""

from __future__ import annotations

import itertools
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.hopper.emulator import compiled

TILE_H, TILE_W, BLOCK_N = 4, 64, 64


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program work.cpp, compiled."""
    return compiled("work", tmp_path_factory)


@pytest.mark.parametrize("at_once", [1, 3, 66])
@pytest.mark.parametrize(
    ("batch", "height", "width", "outputs"),
    [
        (1, 8, 128, 128),
        (1, 12, 64, 64),
        (1, 3, 5, 192),
        (3, 10, 70, 130),  # tiles and columns beyond the edge
    ],
)
def test_work(work: Path, batch: int, height: int, width: int, outputs: int, at_once: int) -> None:
    sizes = [batch, height, width, outputs, at_once]
    done = subprocess.run([work, *map(str, sizes)], capture_output=True, text=True, check=True)
    blocks: dict[int, list[list[int]]] = {}
    for line in done.stdout.splitlines():
        block, *piece = map(int, line.split())
        blocks.setdefault(block, []).append(piece)
    pieces = [piece for block in blocks.values() for piece in block]

    places = list(itertools.product(range(batch), range(0, height, TILE_H), range(0, width, TILE_W)))
    expected = Counter(itertools.product(range(len(places)), range(0, outputs, BLOCK_N)))
    assert Counter((tile, n) for tile, n, *_ in pieces) == expected
    assert all(places[tile] == tuple(place) for tile, _, *place, _, _, _ in pieces)
    assert set(blocks) == set(range(min(at_once, len(expected))))

    for block in blocks.values():
        assert [last for *_, last, _, _ in block] == [0] * (len(block) - 1) + [1]
        turns = [0]
        for (_, n, b, *_), (_, next_n, next_b, *_, fresh, _) in itertools.pairwise(block):
            assert fresh == ((n, b) != (next_n, next_b))
            turns.append(turns[-1] ^ fresh)
        assert [turn for *_, turn in block] == turns
