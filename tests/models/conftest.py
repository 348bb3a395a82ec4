"""A tiny model and its two saved forms, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lpkernels.models import LivePortrait, LivePortraitConfig


@pytest.fixture(scope="session")
def tiny() -> LivePortrait:
    """A tiny random model on the CPU; change nothing in it."""
    return LivePortrait.random(0, LivePortraitConfig.tiny())


@pytest.fixture(scope="session")
def saved(tiny: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with ``tiny`` as ``safetensors`` and as ``pth``; change nothing in them."""
    root = tmp_path_factory.mktemp("saved")
    for suffix in ("safetensors", "pth"):
        tiny.save_pretrained(root / suffix, suffix)
    return {suffix: root / suffix for suffix in ("safetensors", "pth")}


@pytest.fixture
def linked(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder of links to a saved model's files, in which single files can be replaced."""

    def make(suffix: str) -> Path:
        folder = tmp_path / f"weights_{suffix}"
        folder.mkdir()
        for path in saved[suffix].iterdir():
            (folder / path.name).symlink_to(path)
        return folder

    return make
