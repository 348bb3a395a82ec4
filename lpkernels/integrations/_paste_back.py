"""The original's ``paste_back``, a function on the host that takes longer than a frame's networks, on their device.

It is known by its name and its parameters' names. A program has it in several modules, each of which imported it by
name: it is replaced in all modules of the package that the accelerated object's class comes from, and put back wherever
it is found when none of the package's objects is accelerated any more.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lpkernels import ops
from lpkernels.ops.paste_back import trim_mask
from lpkernels.ref.paste_back import Box

NAME = "paste_back"  # and the switch
PARAMETERS = ("img_crop", "M_c2o", "img_ori", "mask_ori")
MASKS = 4  # kept; a source video has one a frame, and none of them comes back
LEVELS = 255
_MARK = "_lpkernels_paste_back"

Array = npt.NDArray[Any]
Mask = tuple[Box, Tensor]


class MaskCache:
    """What becomes of a mask: the box where it is not zero, and its levels there; by the array's identity."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: list[tuple[weakref.ref[Array], Mask | None]] = []
        self._lock = threading.Lock()

    def __call__(self, mask: Array) -> Mask | None:
        """Of an array (H, W, 3), float32; None unless its channels are alike and its values whole levels in 0..1."""
        with self._lock:
            self._kept = [entry for entry in self._kept if entry[0]() is not None]
            for kept, made in self._kept:
                if kept() is mask:
                    return made
        made = self._make(mask)
        with self._lock:
            self._kept = [*self._kept[1 - MASKS :], (weakref.ref(mask), made)]
        return made

    def _make(self, mask: Array) -> Mask | None:
        levels = _on(self._device, mask) * LEVELS
        whole = levels[..., 0].round()
        if not bool(((levels - whole[..., None]).abs() < 1e-3).all() & (whole >= 0).all() & (whole <= LEVELS).all()):
            return None  # NaN fails the first
        return trim_mask(whole.to(torch.uint8))


def make(original: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """``original`` on ``device``; it still answers itself for what is no picture of uint8 or no mask of 255 levels.

    Coordinates are exact where OpenCV's are multiples of 1/32 of a pixel. ``mask_ori`` is read once while it lives.
    """
    masks = MaskCache(device)

    def paste_back(img_crop: Any, M_c2o: Any, img_ori: Any, mask_ori: Any) -> Any:
        mask = None
        if _is_picture(img_crop) and _is_picture(img_ori) and _is_mask(mask_ori, img_ori):
            mask = masks(mask_ori)
        if mask is None or min(img_crop.shape[:2]) < 2:
            return original(img_crop, M_c2o, img_ori, mask_ori)
        (x, y, width, height), tile = mask
        answer = np.array(img_ori, order="C")
        if width > 0:
            part = answer[y : y + height, x : x + width]
            matrix = np.array(M_c2o, dtype=np.float64)[:2] - [[0, 0, x], [0, 0, y]]
            pasted = ops.paste_back(_on(device, img_crop[None]), _on(device, part), tile, matrix, (0, 0, width, height))
            part[...] = pasted[0].cpu().numpy()
        return answer

    paste_back.__dict__[_MARK] = original
    return paste_back


_packages: dict[str, weakref.WeakSet[nn.Module]] = {}
"""Packages whose ``paste_back`` is replaced, with the networks of theirs that are accelerated and alive."""


def package_of(holders: Iterable[object]) -> str | None:
    """The package of the first of a program's objects that has a ``paste_back``; None where none has."""
    for holder in holders:
        package = type(holder).__module__.rpartition(".")[0]
        if package and next(_functions(package), None) is not None:
            return package
    return None


def install(package: str, device: torch.device, modules: Iterable[nn.Module]) -> None:
    """Replace it in a package, on behalf of networks that are accelerated; again for another device."""
    _packages.setdefault(package, weakref.WeakSet()).update(modules)
    replacements: dict[Any, Callable[..., Any]] = {}
    for module, function in list(_functions(package)):
        original = vars(function).get(_MARK, function)
        replacements.setdefault(original, make(original, device))
        vars(module)[NAME] = replacements[original]


def remove(package: str, modules: Iterable[nn.Module]) -> bool:
    """Put it back, unless other networks of the package are accelerated; whether it is the program's own now."""
    accelerated = _packages.get(package, weakref.WeakSet())
    accelerated.difference_update(modules)
    if accelerated:
        return False
    _packages.pop(package, None)
    for module, function in list(_functions(package)):
        vars(module)[NAME] = vars(function).get(_MARK, function)
    return True


def installed(package: str) -> bool:
    """Whether it is replaced."""
    return package in _packages


def _functions(package: str) -> Iterator[tuple[ModuleType, Any]]:
    """The modules of a package that have a ``paste_back``, with it."""
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            function = vars(module).get(NAME) if isinstance(module, ModuleType) else None
            if inspect.isfunction(function) and tuple(inspect.signature(function).parameters) == PARAMETERS:
                yield module, function


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def _is_mask(value: Any, picture: Array) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == picture.shape


def _on(device: torch.device, pixels: Array) -> Tensor:
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(device)
