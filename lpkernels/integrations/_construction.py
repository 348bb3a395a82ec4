"""Acceleration of whatever wrapper of LivePortrait is constructed, in code that cannot be edited.

The classes are found by name, in modules called ``live_portrait_wrapper``: those imported already and, through a finder
on ``sys.meta_path``, those to come. Their ``__init__`` is wrapped while at least one ``Acceleration`` is on.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType, TracebackType
from typing import Any

from lpkernels.integrations._report import Report

MODULE = "live_portrait_wrapper"
CLASSES = "LivePortraitWrapper"  # and names that begin so: the animals' is one

_log = logging.getLogger("lpkernels")
_active: list[Acceleration] = []
_wrapped: dict[Any, Any] = {}  # class -> its own __init__
_lock = threading.RLock()
_constructing = threading.local()  # .objects: ids of those whose outermost __init__ this thread is in


class Acceleration:
    """While it is on, every LivePortraitWrapper is accelerated as soon as it is constructed, on any thread.

    >>> with lpkernels.accelerate():
    ...     runpy.run_path("inference.py", run_name="__main__")

    What was constructed stays accelerated afterwards; if the block ends with an exception, it is put back. Of several
    that are on, the one started last acts. A wrapper that cannot be accelerated raises InputError in its constructor.

    Args:
        accelerate: of one wrapper.
        restore: of one wrapper.

    Attributes:
        reports: of the wrappers so far; each is logged too, by the logger ``lpkernels``.
    """

    def __init__(self, accelerate: Callable[[Any], Report], restore: Callable[[Any], Report]) -> None:
        self._accelerate, self._restore = accelerate, restore
        self._made: list[weakref.ref[Any]] = []
        self.reports: list[Report] = []

    def start(self) -> Acceleration:
        """Switch on, for the rest of the process or until ``stop``."""
        with _lock:
            if self not in _active:
                _active.append(self)
                if _finder not in sys.meta_path:
                    sys.meta_path.insert(0, _finder)
                for name, module in list(sys.modules.items()):
                    if _is_wanted(name):
                        _wrap_classes(module)
        return self

    def stop(self) -> None:
        """Switch off; what was constructed stays accelerated."""
        with _lock:
            if self in _active:
                _active.remove(self)
            if not _active:
                _unwrap_all()

    def restore(self) -> None:
        """Put back every wrapper that was constructed and is still alive."""
        for reference in self._made:
            made = reference()
            if made is not None:
                self._restore(made)
        self._made.clear()

    def __enter__(self) -> Acceleration:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if kind is not None and not issubclass(kind, SystemExit):  # a script may end with sys.exit()
            self.restore()

    def _constructed(self, made: Any) -> None:
        report = self._accelerate(made)
        self._made.append(weakref.ref(made))
        self.reports.append(report)
        _log.info("%s", report)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what the finders after it find, and looks at the modules once they are loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _is_wanted(name):
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):  # a namespace package has nothing to run
                    _watch(spec.loader)
                return spec
        return None


_finder = _Finder()


def _watch(loader: Any) -> None:
    """Have the classes of a module wrapped after ``loader``, which is that module's alone, has run it."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        with _lock:
            if _active:
                _wrap_classes(module)

    loader.exec_module = exec_module


def _is_wanted(name: str) -> bool:
    return name.rpartition(".")[2] == MODULE


def _wrap_classes(module: ModuleType) -> None:
    for value in list(vars(module).values()):
        named = isinstance(value, type) and value.__name__.startswith(CLASSES)
        if named and "__init__" in vars(value) and value not in _wrapped:
            _wrapped[value] = value.__init__
            value.__init__ = _accelerating(value.__init__)


def _unwrap_all() -> None:
    for wrapped, init in _wrapped.items():
        # One that someone else wrapped in the meantime stays below theirs, and does nothing.
        if getattr(vars(wrapped)["__init__"], "__wrapped__", None) is init:
            wrapped.__init__ = init
    _wrapped.clear()
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


def _accelerating(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        objects = _constructing.__dict__.setdefault("objects", set())
        outermost = id(self) not in objects  # a subclass may call its parent's
        objects.add(id(self))
        try:
            init(self, *args, **kwargs)
        finally:
            if outermost:
                objects.discard(id(self))
        current = _active[-1:] if outermost else []
        for acceleration in current:
            acceleration._constructed(self)

    return __init__
