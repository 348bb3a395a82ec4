"""conv_spade's kernel without a GPU: its own code in several steps, compiled for the CPU and run thread by thread."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from lpkernels import ref
from tests.hopper.emulator import compiled
from tests.ops import contract
from tests.ops.conv_inputs import exact
from tests.ops.test_spade_blocks import Case
from tests.ops.winograd_inputs import WEIGHTS, packed


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program spade_blocks.cpp, compiled."""
    return compiled("spade_blocks", tmp_path_factory)


def lowered(inputs: list[Any]) -> list[Any]:
    """The same call with its weights in float16."""
    return [value.half() if i in WEIGHTS["spade_blocks"] else value for i, value in enumerate(inputs)]


@pytest.mark.parametrize(
    ("case", "seed"),
    [
        (Case((1, 8, 64, 128), 64, 3), 1),  # a cluster's two tiles by two pieces of the outputs
        (Case((2, 12, 64, 64), 128, 5), 2),  # a tile with neighbours on both sides; a cluster with tiles of two images
        (Case((2, 4, 128, 64), 192, 2), 3),  # images and columns of tiles
    ],
)
def test_steps(kernel: Path, case: Case, seed: int) -> None:
    inputs = [value.half() if i < 3 else value for i, value in enumerate(case.inputs())]
    *tensors, slope = lowered(inputs)
    data = b"".join(tensor.numpy().tobytes() for tensor in lowered(packed("spade_blocks", inputs))[:-1])
    sizes = [*case.x, case.hidden, case.steps, seed]
    done = subprocess.run([kernel, *map(str, sizes)], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    answers = torch.frombuffer(bytearray(done.stdout), dtype=torch.float16).reshape(2, *case.x)
    truths, owns = ref.spade_blocks(*exact(inputs)), ref.spade_blocks_in(torch.float16, *tensors, slope)
    for actual, own, truth in zip(answers, owns, truths, strict=True):
        bound = 1.5 * contract.relative_error(own, truth) + contract.ULPS[torch.float16]
        assert contract.relative_error(actual, truth) <= bound
