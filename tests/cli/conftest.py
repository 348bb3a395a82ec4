"""A drawn sample and small weights, so that commands run for real in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpkernels.animate.portrait import write_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source picture and a driving clip of six frames."""
    return write_sample(tmp_path_factory.mktemp("sample"), frames=6, size=64)
