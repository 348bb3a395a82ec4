"""The preview window, with a fake tkinter, and what a live run prints about itself."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels.animate.session import Latency, SessionStats
from lpkernels.cli import _live_report
from lpkernels.cli._live_outputs import Preview
from lpkernels.cli._live_report import Memory, Status, status_line, summary, write_report

TIMES = Latency(90, 21.0, 20.0, 25.0, 40.0, 55.5)
STATS = SessionStats(
    frames_in=100,
    frames_out=90,
    dropped=8,
    bad=2,
    held=3,
    waiting=0,
    working=0,
    seconds=4.0,
    fps=29.97,
    latency=TIMES,
    animation=TIMES,
    source="1: a.png",
    last_error="frame must be a NumPy array, got NoneType",
    failed=False,
    closed=True,
)


class FakeTk:
    """tkinter's root window; every ``update`` types what is next in ``typed``."""

    last: FakeTk

    def __init__(self) -> None:
        FakeTk.last = self
        self.updates, self.destroyed, self.handlers = 0, 0, {}
        self.typed: list[tuple[str, str]] = []

    def title(self, text: str) -> None: ...

    def resizable(self, *sides: bool) -> None: ...

    def protocol(self, name: str, handler: Any) -> None:
        self.handlers[name] = handler

    bind = protocol

    def update(self) -> None:
        self.updates += 1
        for keysym, char in self.typed:
            self.handlers["<Key>"](SimpleNamespace(keysym=keysym, char=char))
        self.typed = []

    def destroy(self) -> None:
        self.destroyed += 1


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Preview:
    class Photo:
        def __init__(self, image: Any) -> None:
            self.images = [image]

        def paste(self, image: Any) -> None:
            self.images.append(image)

    label = SimpleNamespace(configure=lambda image: None, pack=lambda: None)
    tkinter = SimpleNamespace(Tk=FakeTk, Label=lambda root, **options: label)
    monkeypatch.setitem(sys.modules, "tkinter", tkinter)
    photos = SimpleNamespace(PhotoImage=Photo)
    monkeypatch.setitem(sys.modules, "PIL.ImageTk", photos)
    monkeypatch.setattr("PIL.ImageTk", photos, raising=False)
    return Preview("title")


def test_one_image_is_painted_over(window):
    for level in (1, 2, 3):
        window.show(np.full((4, 6, 3), level, np.uint8))
    assert [image.getpixel((0, 0))[0] for image in window._photo.images] == [1, 2, 3]
    assert window._photo.images[0].size == (6, 4)


def test_a_picture_of_another_size_gets_an_image_of_its_own(window):
    for width in (6, 6, 9, 9):
        window.show(np.zeros((4, width, 3), np.uint8))
    assert [image.size for image in window._photo.images] == [(9, 4), (9, 4)]


def test_keys_are_handed_out_once(window):
    FakeTk.last.typed = [("r", "r"), ("Shift_L", ""), ("2", "2")]
    assert window.update() == ["r", "2"]
    assert window.update() == []
    assert not window.closed


@pytest.mark.parametrize("end", ["Escape", "q", "WM_DELETE_WINDOW"])
def test_the_user_can_end(window, end):
    root = FakeTk.last
    if end in root.handlers:
        root.handlers[end]()
    else:
        root.typed = [(end, "")]
        window.update()
    assert window.closed
    updates = root.updates
    window.update()
    assert root.updates == updates, "a closed window is let be"
    window.close()
    window.close()
    assert root.destroyed == 1


def test_the_status_is_one_line():
    assert status_line(STATS) == ("     4 s   30.0 fps  latency p50 20.0 ms  p99 40.0 ms  dropped 8  bad 2")
    assert status_line(dataclasses.replace(STATS, bad=0)).endswith("dropped 8")


def test_the_summary_has_every_count():
    assert summary(STATS, "interrupted").splitlines() == [
        "4.0 s, interrupted",
        "frames     100 in, 90 out (22.5 a second), 8 dropped, 2 bad",
        "latency    p50 20.0  p90 25.0  p99 40.0  max 55.5 ms",
        "animation  p50 20.0  p90 25.0  p99 40.0  max 55.5 ms",
        "last error frame must be a NumPy array, got NoneType",
    ]


@pytest.mark.parametrize(("terminal", "lines", "separator"), [(True, 4, "\r"), (False, 1, "\n")])
def test_a_terminal_is_told_more_often_than_a_log(capsys, monkeypatch, terminal, lines, separator):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    status = Status(quiet=False)
    for tenth in range(105 if not terminal else 45):
        status.tick(dataclasses.replace(STATS, seconds=tenth / 10))
    status.end()
    status.end()
    err = capsys.readouterr().err
    assert err.count("fps") == lines
    assert err.count(separator) == lines
    assert err.endswith("\n")


def test_quiet_prints_nothing(capsys):
    status = Status(quiet=True)
    status.tick(dataclasses.replace(STATS, seconds=100))
    status.end()
    assert capsys.readouterr().err == ""


def test_memory_counts_from_when_it_has_settled(monkeypatch, tmp_path):
    sizes = iter([100.0, 130.0, 120.0])
    monkeypatch.setattr(_live_report, "host_mib", lambda: next(sizes))
    memory = Memory(torch.device("cpu"))
    memory.look(dataclasses.replace(STATS, frames_out=3))
    assert memory.report() == {"host_mib": None, "gpu_mib": None}
    for _ in range(3):
        memory.look(STATS)
    write_report(tmp_path / "r.json", {"ended": "so"}, STATS, memory)
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["memory"] == {"host_mib": {"settled": 100.0, "end": 120.0, "max": 130.0}, "gpu_mib": None}
    assert record["ended"] == "so"
    assert record["stats"]["latency"]["p99_ms"] == 40.0
