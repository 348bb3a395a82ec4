"""Programs that run the Hopper kernels' own code on the CPU, thread by thread (``emulated/``)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INCLUDES = ROOT / "tests/hopper/emulated", ROOT / "tests/convnext/emulated", ROOT / "csrc"


def compiled(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program ``name``.cpp; skips where no compiler has half precision."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp(name)
    program, probe = folder / name, folder / "probe.cpp"
    probe.write_text("int main(int n, char**) { return static_cast<int>(static_cast<_Float16>(n)) - 1; }\n")

    def builds(source: Path, *flags: str) -> bool:
        flags = "-std=c++20", "-O2", "-fno-strict-aliasing", *flags
        command = [compiler, *flags, str(source), "-o", str(program)]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not builds(probe):
        pytest.skip(f"{compiler} has no _Float16")
    assert builds(Path(__file__).with_name(f"{name}.cpp"), *[f"-I{path}" for path in INCLUDES])
    return program
