"""accelerate() without a target: wrappers are accelerated as they are constructed, wherever they are imported."""

from __future__ import annotations

import importlib
import logging
import runpy
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lpkernels
from lpkernels.errors import InputError
from lpkernels.integrations import _construction
from tests.integrations.programs import NETWORKS, assert_same, frame, patched

MODULE = """
from types import SimpleNamespace
from tests.integrations import programs

class LivePortraitWrapper(programs.LivePortraitWrapper):
    def __init__(self, half=False):
        super().__init__(SimpleNamespace(half=half))

class LivePortraitWrapperAnimal(LivePortraitWrapper):
    def __init__(self):
        super().__init__()
        self.animal = True

class LivePortraitWrapperWithoutW(LivePortraitWrapper):
    def __init__(self):
        super().__init__()
        self.warping_module.train()

class Timer:
    def __init__(self):
        pass
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ModuleType]]:
    """Imports a package's ``live_portrait_wrapper``, new in every test."""
    (tmp_path / "someones_copy").mkdir()
    (tmp_path / "someones_copy" / "live_portrait_wrapper.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "someones_copy.live_portrait_wrapper"
    yield lambda: importlib.import_module(name)
    for key in (name, "someones_copy"):
        sys.modules.pop(key, None)
    assert not _construction._active
    assert not _construction._wrapped
    assert _construction._finder not in sys.meta_path


def test_modules_imported_before_and_after(load: Callable[[], ModuleType]) -> None:
    before = load()
    init = before.LivePortraitWrapper.__init__
    with lpkernels.accelerate(spade_generator=False) as acceleration:
        made = before.LivePortraitWrapper()
    assert before.LivePortraitWrapper.__init__ is init
    assert patched(made) == list(NETWORKS[:3]), "it stays accelerated"
    assert patched(before.LivePortraitWrapper()) == []
    assert [report.target for report in acceleration.reports] == ["LivePortraitWrapper"]

    sys.modules.pop(before.__name__)
    with lpkernels.accelerate():
        after = load()
        assert after is not before
        assert patched(after.LivePortraitWrapper()) == list(NETWORKS)
        after.Timer()
    assert patched(after.LivePortraitWrapper()) == []


def test_a_subclass_is_accelerated_once_and_when_it_is_complete(load: Callable[[], ModuleType]) -> None:
    module = load()

    class Own(module.LivePortraitWrapper):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__(half=True)

    with lpkernels.accelerate() as acceleration:
        animal, own = module.LivePortraitWrapperAnimal(), Own()
    assert animal.animal
    assert [patched(made) for made in (animal, own)] == [list(NETWORKS)] * 2
    assert [report.target for report in acceleration.reports] == ["LivePortraitWrapperAnimal", "Own"]


def test_an_exception_puts_everything_back(load: Callable[[], ModuleType]) -> None:
    module = load()
    expected = frame(module.LivePortraitWrapper())
    kept: list[Any] = []

    def fail() -> None:
        with lpkernels.accelerate():
            kept.append(module.LivePortraitWrapper())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert patched(kept[0]) == []
    assert_same(frame(kept[0]), expected)


def test_an_exception_in_a_constructor_leaves_nothing(load: Callable[[], ModuleType]) -> None:
    module = load()
    with lpkernels.accelerate():
        with pytest.raises(TypeError):
            module.LivePortraitWrapper(1, 2)
        with pytest.raises(InputError, match="training mode"):
            module.LivePortraitWrapperWithoutW()
        assert not _construction._constructing.objects
        assert patched(module.LivePortraitWrapper()) == list(NETWORKS)


def test_a_script_that_ends_with_exit_keeps_its_wrappers(load: Callable[[], ModuleType], tmp_path: Path) -> None:
    script = tmp_path / "inference.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from someones_copy.live_portrait_wrapper import LivePortraitWrapper
            sys.modules["someones_copy"].made = LivePortraitWrapper()
            sys.exit()
        """)
    )
    with pytest.raises(SystemExit), lpkernels.accelerate():
        runpy.run_path(str(script), run_name="__main__")
    assert patched(sys.modules["someones_copy"].made) == list(NETWORKS)


def test_started_for_good_and_the_last_one_counts(
    load: Callable[[], ModuleType], caplog: pytest.LogCaptureFixture
) -> None:
    module = load()
    caplog.set_level(logging.INFO, logger="lpkernels")
    first = lpkernels.accelerate(precision="fp32").start().start()
    with lpkernels.accelerate(precision="bf16"):
        assert "bf16" in str(lpkernels.accelerate(module.LivePortraitWrapper(), "bf16"))
    made = module.LivePortraitWrapper()
    assert "fp32" in str(first.reports[0])
    assert "4 of 4 parts of LivePortraitWrapper replaced" in caplog.text
    first.stop()
    first.stop()
    assert patched(made) == list(NETWORKS)
    first.restore()
    assert patched(made) == []


def test_someone_elses_wrapper_around_ours(load: Callable[[], ModuleType]) -> None:
    module = load()
    with lpkernels.accelerate():
        ours = module.LivePortraitWrapper.__init__
        module.LivePortraitWrapper.__init__ = lambda self, *args, **kwargs: ours(self, *args, **kwargs)
    assert patched(module.LivePortraitWrapper()) == []


def test_constructions_on_threads(load: Callable[[], ModuleType]) -> None:
    module, made = load(), list[Any]()
    with lpkernels.accelerate():
        threads = [threading.Thread(target=lambda: made.append(module.LivePortraitWrapper())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [patched(wrapper) for wrapper in made] == [list(NETWORKS)] * 3


def test_bad_settings_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="precision must be"):
        lpkernels.accelerate(precision="fp8")
