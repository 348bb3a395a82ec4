"""The work of the Hopper convolutions' blocks that load weights for each other: who has which tile, and when."""

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
        (1, 12, 64, 64),  # the last cluster has one tile for both blocks
        (1, 3, 5, 192),  # the only one, too
        (3, 10, 70, 130),  # clusters with tiles of two images; tiles and columns beyond the edge
    ],
)
def test_work(work: Path, batch: int, height: int, width: int, outputs: int, at_once: int) -> None:
    sizes = [batch, height, width, outputs, at_once]
    done = subprocess.run([work, *map(str, sizes)], capture_output=True, text=True, check=True)
    blocks: dict[tuple[int, int], list[list[int]]] = {}
    for line in done.stdout.splitlines():
        cluster, rank, *piece = map(int, line.split())
        blocks.setdefault((cluster, rank), []).append(piece)
    pieces = [piece for block in blocks.values() for piece in block]

    places = list(itertools.product(range(batch), range(0, height, TILE_H), range(0, width, TILE_W)))
    columns = range(0, outputs, BLOCK_N)
    expected = Counter(itertools.product(range(len(places)), columns))
    if len(places) % 2:
        expected.update((len(places) - 1, n) for n in columns)
    assert Counter((tile, n) for tile, n, *_ in pieces) == expected
    assert all(places[tile] == tuple(place) for tile, _, *place, _, _, _ in pieces)

    last_cluster = -(-len(places) // 2) * len(columns)
    assert {cluster for cluster, _ in blocks} == set(range(min(at_once, last_cluster)))
    for cluster in range(len(blocks) // 2):
        first, second = blocks[cluster, 0], blocks[cluster, 1]
        assert [n for _, n, *_ in first] == [n for _, n, *_ in second]  # as many, with the same weights
        assert all(tile % 2 == 0 for tile, *_ in first)
        neighbours = [min(tile + 1, len(places) - 1) for tile, *_ in first]
        assert [tile for tile, *_ in second] == neighbours

    for block in blocks.values():
        assert [last for *_, last, _, _ in block] == [0] * (len(block) - 1) + [1]
        turns = [0]
        for (_, n, b, *_), (_, next_n, next_b, *_, fresh, _) in itertools.pairwise(block):
            assert fresh == ((n, b) != (next_n, next_b))
            turns.append(turns[-1] ^ fresh)
        assert [turn for *_, turn in block] == turns
