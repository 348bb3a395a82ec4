"""A checkout of a LivePortrait program, importable; packages that only its pictures and messages need may be missing.

What is missing among those is stood in for, so that its networks, its wrapper and its loop run as they are.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

VARIABLE = "LPKERNELS_LIVEPORTRAIT"
REPLACEABLE: tuple[str, ...] = (
    "cv2",
    "yaml",
    "rich",
    "comfy",
    "imageio",
    "onnxruntime",
    "pykalman",
    "tyro",
    "skimage",
    "torchvision",
)
REPLACEABLE += (
    "insightface",
    "onnx",
    "tqdm",
    "matplotlib",
    "requests",
    "ffmpeg",
    "albumentations",
    "prettytable",
    "scipy",
)


def path() -> Path | None:
    """The checkout that the environment names; None where it names none."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().resolve() if named else None


@dataclass
class Checkout:
    """The package of a checkout that holds its wrapper.

    Attributes:
        package: its name, to import from.
        missing: packages that were asked for and stood in for so far.
    """

    package: str
    missing: set[str] = field(default_factory=set)

    def module(self, name: str) -> Any:
        """A module of the package."""
        return importlib.import_module(f"{self.package}.{name}")


@contextlib.contextmanager
def importable(root: Path) -> Iterator[Checkout]:
    """Inside, modules of the checkout at ``root`` can be imported; afterwards they and the stand-ins are forgotten.

    Raises:
        FileNotFoundError: there is no ``*/live_portrait_wrapper.py`` in it.
    """
    found = sorted(root.glob("*/live_portrait_wrapper.py"))
    if not found:
        raise FileNotFoundError(f"{root} holds no */live_portrait_wrapper.py: it is no checkout of LivePortrait")
    folder = found[0].parent
    checkout = Checkout(folder.name)
    finder, before = _StandIns(checkout.missing), set(sys.modules)
    benchmark = torch.backends.cudnn.benchmark  # the original switches it on when it is imported
    sys.path.insert(0, str(folder.parent))
    sys.meta_path.append(finder)
    try:
        yield checkout
    finally:
        torch.backends.cudnn.benchmark = benchmark
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder.parent))
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in {folder.name, *checkout.missing}:
                del sys.modules[name]


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes last of all finders: what gets here is not installed."""

    def __init__(self, missing: set[str]) -> None:
        self._missing = missing

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        top = fullname.partition(".")[0]
        if top not in REPLACEABLE or (top in sys.modules and top not in self._missing):
            return None
        self._missing.add(top)
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__all__ = []  # type: ignore[attr-defined]


class _StandIn(ModuleType):
    """A module that has every name; a few of them do what the wrapper and the loop rely on."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _WORKING.get((self.__name__, name), _NOTHING)


class _Nothing:
    """Whatever is asked of it, it answers with itself and does nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (object,)


def _resize(picture: np.ndarray, size: tuple[int, int], *_: Any, **__: Any) -> np.ndarray:
    """uint8 (H, W, 3) to ``size``, width and height, bilinear; one of that size as it is."""
    if picture.shape[1::-1] == tuple(size):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


_NOTHING = _Nothing()
_WORKING: dict[tuple[str, str], Callable[..., Any]] = {
    ("yaml", "load"): lambda file, Loader: json.load(file),
    ("cv2", "imread"): lambda *args: None,
    ("cv2", "resize"): _resize,
    ("rich.progress", "track"): lambda items, *args, **kwargs: items,
    ("comfy.model_management", "get_autocast_device"): lambda device: torch.device(device).type,
}
