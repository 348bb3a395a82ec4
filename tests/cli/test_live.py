"""`lpkernels live` from the arguments to the summary, with files for cameras and, mostly, a fake animator."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lpkernels import cli
from lpkernels.animate.image import load_image
from lpkernels.animate.session import Session
from lpkernels.errors import LpkernelsError
from tests.animate.clips import moving_frames, write_clip
from tests.animate.live import FakeAnimator, live_threads

MODEL = ("--random-weights", "0", "--config", "tiny", "--device", "cpu")


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    yield
    assert live_threads() == []


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in a twentieth of a second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "camera.mp4", moving_frames(6), fps=Fraction(120))


@pytest.fixture
def command(sample, camera):
    """Run `lpkernels live` with one source and the clip, unless others are given."""

    def run(*argv: str | Path, camera: str | Path = camera, model=MODEL, quiet: bool = True) -> int:
        options = ("-q",) if quiet else ()
        arguments = ("live", "-s", sample[0], "--camera", camera, *model, *options, *argv)
        return cli.main([str(argument) for argument in arguments])

    return run


@pytest.fixture
def animator(monkeypatch: pytest.MonkeyPatch) -> FakeAnimator:
    """The animator of a run that loads no model."""
    fake: Any = FakeAnimator()
    fake.model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    fake.frame_size = (64, 64)
    monkeypatch.setattr("lpkernels.cli.live.load_model", lambda args: fake.model)
    monkeypatch.setattr("lpkernels.animate.animator.Animator", lambda *args, **options: fake)
    monkeypatch.setattr("lpkernels.animate.session.prepare_source", lambda model, source, crop, paste_back: "B")
    return fake


class FakeWindow:
    """Keys are typed at the pictures of these numbers; closed by the user at picture ``last``."""

    def __init__(self, keys: dict[int, str], last: int | None = None) -> None:
        self.keys, self.last = keys, last
        self.shown, self.updates, self.closed, self.gone = 0, 0, False, False

    def show(self, picture: Any) -> None:
        self.shown += 1

    def update(self) -> list[str]:
        self.closed = self.closed or self.shown == self.last
        key = self.keys.pop(self.shown, None)
        return [] if key is None else [key]

    def close(self) -> None:
        self.gone = True


def refused(capsys, code: int, expected: int, *words: str) -> None:
    out, err = capsys.readouterr()
    assert code == expected, err
    assert out == ""
    assert err.startswith("lpkernels"), err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_a_file_is_played_to_its_end(command, tmp_path, capsys):
    report = tmp_path / "stats.json"
    assert command("--stats", report, "--no-window") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "the camera ended" in out
    assert "frames     6 in" in out
    record = json.loads(report.read_text())
    stats = record["stats"]
    assert stats["frames_in"] == 6 == stats["frames_out"] + stats["dropped"]
    assert stats["frames_out"] >= 1
    assert (stats["bad"], stats["waiting"], stats["working"], stats["failed"]) == (0, 0, 0, False)
    assert stats["latency"]["count"] == stats["frames_out"]
    assert 0 < stats["animation"]["p50_ms"] <= stats["latency"]["max_ms"]
    assert (record["camera_size"], record["camera_fps"], record["engine"]) == ([64, 48], 120, "published")
    assert (record["device"], record["precision"], record["ended"]) == ("cpu", "float32", "the camera ended")


def test_whole_pictures_are_shown(command, sample, tmp_path, monkeypatch):
    sizes = []

    class Window(FakeWindow):
        def show(self, picture: Any) -> None:
            super().show(picture)
            sizes.append(picture.shape)

    monkeypatch.setattr("lpkernels.cli.live.open_preview", lambda title: Window({}))
    report = tmp_path / "stats.json"
    assert command("--crop", "8,4,40,48", "--paste-back", "--stats", report) == 0
    height, width = load_image(sample[0]).shape[:2]
    assert set(sizes) == {(height, width, 3)}
    assert json.loads(report.read_text())["frame_size"] == [width, height]


@pytest.mark.parametrize("option", ["--crop", "--driving-crop"])
def test_without_the_extra_face_the_command_is_named(command, capsys, monkeypatch, option):
    monkeypatch.setattr("lpkernels.animate._mtcnn.importlib.util.find_spec", lambda name: None)
    refused(capsys, command(option, "auto"), 2, "pip install 'lpkernels[face]'")


def test_a_virtual_camera_has_one_size(command, sample, capsys):
    refused(capsys, command("--virtual-camera", "--paste-back", "-s", sample[0]), 2, "--virtual-camera", "one --source")


def test_a_looped_file_goes_on_until_the_time_is_up(command, animator, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lpkernels.cli._live_report._SETTLED", 1)
    report = tmp_path / "stats.json"
    report.write_text("of an earlier run")
    assert command("--loop", "--seconds", "0.5", "--no-window", "--stats", report) == 0
    assert "the time was up" in capsys.readouterr().out
    record = json.loads(report.read_text())
    assert record["stats"]["frames_in"] > 6
    assert animator.warmed == [(48, 64)], "prepared before the first frame"
    if Path("/proc/self/statm").exists():
        memory = record["memory"]["host_mib"]
        assert memory["max"] >= memory["settled"] > 10


def test_without_a_screen_it_goes_on(command, animator, capsys, monkeypatch):
    tkinter = SimpleNamespace(Tk=_no_screen)
    monkeypatch.setitem(sys.modules, "tkinter", tkinter)
    monkeypatch.setitem(sys.modules, "PIL.ImageTk", SimpleNamespace(PhotoImage=None))
    monkeypatch.setattr("PIL.ImageTk", sys.modules["PIL.ImageTk"], raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert command() == 0
    out, err = capsys.readouterr()
    assert err == "no preview window: there is no screen ($DISPLAY is not set); going on without\n"
    assert "6 in" in out


class TclError(Exception):
    """Named as tkinter's."""


def _no_screen() -> None:
    raise TclError("no display name and no $DISPLAY environment variable")


def test_without_tkinter_it_goes_on(command, animator, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tkinter", None)
    assert command() == 0
    assert "no preview window: " in (err := capsys.readouterr().err)
    assert "python3-tk" in err


def test_keys_choose_sources_and_the_neutral_face(command, animator, sample, capsys, monkeypatch):
    window = FakeWindow({1: "2", 2: "r", 3: "x", 4: "9"}, last=6)
    monkeypatch.setattr("lpkernels.cli.live.open_preview", lambda title: window)
    assert command("-s", sample[0], "--loop") == 0
    assert "the window was closed" in capsys.readouterr().out
    begun = list(animator.begun.queue)
    assert [event for event in begun if isinstance(event, str)] == ["B", "reset"]
    assert window.shown == 6
    assert window.gone


def test_ctrl_c_ends_with_a_summary(command, animator, tmp_path, capsys, monkeypatch):
    wait, calls = Session.wait, []

    def stop_at_the_third(self: Session, *args: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return wait(self, *args, **options)

    monkeypatch.setattr(Session, "wait", stop_at_the_third)
    report = tmp_path / "stats.json"
    assert command("--loop", "--no-window", "--stats", report) == 130
    out, err = capsys.readouterr()
    assert err == ""
    assert "interrupted" in out
    assert json.loads(report.read_text())["ended"] == "interrupted"


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A pyvirtualcam that keeps what it is sent."""
    module = SimpleNamespace(sent=[], made=[], closed=0, error=None)

    class Camera:
        device = "/dev/video9"

        def __init__(self, **options: Any) -> None:
            if module.error is not None:
                raise module.error
            module.made.append(options)

        def send(self, picture: Any) -> None:
            module.sent.append(picture)

        def close(self) -> None:
            module.closed += 1

    module.Camera = Camera
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    return module


def test_a_virtual_camera_gets_every_picture(command, animator, virtual, capsys):
    assert command("--virtual-camera", "--no-window") == 0
    assert virtual.made == [{"width": 64, "height": 64, "fps": 120.0}]
    assert virtual.closed == 1
    assert "virtual camera: /dev/video9" in (out := capsys.readouterr().out)
    assert len(virtual.sent) >= int(out.split(" in, ")[1].split(" out")[0])


def test_a_virtual_camera_is_kept_alive_while_nothing_comes(command, animator, virtual, tmp_path):
    clip = write_clip(tmp_path / "slow.mp4", moving_frames(2), fps=2)
    assert command("--virtual-camera", "--no-window", "--stats", tmp_path / "s.json", camera=clip) == 0
    assert len(virtual.sent) > 4, "held pictures are sent again"
    assert json.loads((tmp_path / "s.json").read_text())["stats"]["held"] >= len(virtual.sent) - 2


def test_virtual_cameras_that_cannot_be(command, animator, virtual, capsys, monkeypatch):
    virtual.error = RuntimeError("'v4l2loopback' backend: no device found")
    refused(capsys, command("--virtual-camera"), 1, "v4l2loopback")
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    refused(capsys, command("--virtual-camera"), 2, "pip install 'lpkernels[live]'")


def test_a_camera_that_is_lost_ends_with_a_summary_and_exit_code_1(command, animator, tmp_path, capsys, monkeypatch):
    from lpkernels.animate._camera import open_camera

    def losing(*args: Any, **options: Any) -> Any:
        camera: Any = open_camera(*args, **options)
        read, left = camera.read, [3]

        def read_three() -> Any:
            if not left[0]:
                raise LpkernelsError("camera 0 is lost: No such device")
            left[0] -= 1
            return read()

        camera.read = read_three
        return camera

    monkeypatch.setattr("lpkernels.animate._camera.open_camera", losing)
    report = tmp_path / "stats.json"
    assert command("--no-window", "--stats", report) == 1
    out, err = capsys.readouterr()
    assert err == "lpkernels: camera 0 is lost: No such device\n"
    assert "3 in" in out
    assert json.loads(report.read_text())["ended"] == "failed: camera 0 is lost: No such device"


def test_an_animator_that_fails_ends_with_its_error(command, animator, capsys):
    animator.errors = dict.fromkeys(range(256), RuntimeError("CUDA error: out of order"))
    assert command("--no-window", "--loop") == 1
    out, err = capsys.readouterr()
    assert err == "lpkernels: the live session failed: RuntimeError: CUDA error: out of order\n"
    assert "0 out" in out


def test_what_is_wrong_is_said_before_weights_are_read(command, sample, tmp_path, capsys):
    refused(capsys, command(model=()), 2, "--weights DIR")
    refused(capsys, command("-s", "nowhere.png"), 2, "--source", "nowhere.png")
    refused(capsys, command(camera="nowhere.mp4"), 2, "nowhere.mp4")
    refused(capsys, command("--stats", tmp_path / "nowhere" / "s.json"), 2, "nowhere")
    refused(capsys, command("--driving-crop", "0,0,65,4"), 2, "leaves the frames")
    refused(capsys, command("--crop", "0,0,9,9", "-s", sample[0]), 2, "--crop")
    refused(capsys, command("--camera-fps", "30"), 2, "asked of a camera only")
    refused(capsys, command("--absolute", "--driving-option", "expression-friendly"), 2, "relative")


@pytest.mark.parametrize(
    "argv", [("--seconds", "0"), ("--seconds", "soon"), ("--camera-size", "640"), ("--camera-fps", "nan")]
)
def test_a_malformed_value(command, capsys, argv):
    refused(capsys, command(*argv), 2, *argv)
