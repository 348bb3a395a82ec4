"""conv_spade without a GPU: a thread's outputs of the convolution are those of its gammas and betas."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from lpkernels import rewrites

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [(1, 64, 64, 512), (2, 8, 128, 256)])
def test_outputs_and_columns_meet_in_a_thread(tmp_path: Path, size: tuple[int, int, int, int]) -> None:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = Path(__file__).with_name("conv_spade.cpp"), tmp_path / "conv_spade"
    subprocess.run([compiler, "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    done = subprocess.run([program, *map(str, size)], capture_output=True, text=True, check=True)
    lines = torch.tensor([[int(number) for number in line.split()] for line in done.stdout.splitlines()])
    place, outputs, same, columns = lines[:, :3], lines[:, 3], lines[:, 4:7], lines[:, 7:]
    assert torch.equal(place, same)
    batch, height, width, channels = size
    every = torch.cartesian_prod(*map(torch.arange, (batch, height, width)), torch.arange(0, channels, 8))
    assert torch.equal(torch.unique(lines[:, :4], dim=0), every)
    assert len(lines) == len(every)
    numbers = torch.arange(channels)  # the packed columns: which output's gamma (positive) or beta they are
    row = numbers.reshape(-1, 1, 1, 1).double()
    merged, _ = rewrites.merge_gamma_beta(row + 1, numbers.double(), -row - 1, numbers.double())
    held = merged.flatten()[columns].long()
    assert torch.equal(held, torch.stack([outputs + 1, -outputs - 1], dim=1))
