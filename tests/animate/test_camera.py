"""Cameras, streams and files that stand in for them, and the thread that reads them at the right pace."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from lpkernels.animate import _camera
from lpkernels.animate._camera import open_camera
from lpkernels.animate._feeder import Feeder
from lpkernels.animate.image import Frame
from lpkernels.animate.portrait import draw_portrait
from lpkernels.errors import InputError, LpkernelsError
from tests.animate.clips import moving_frames, write_clip
from tests.animate.live import SOON, Clock, frame


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", moving_frames(5), fps=Fraction(30))


def read_all(name: str, at_most: int = 1000, **options: Any) -> list[Frame]:
    camera = open_camera(name, **options)
    frames = []
    while len(frames) < at_most and (picture := camera.read()) is not None:
        frames.append(picture)
    camera.close()
    camera.close()
    return frames


def test_a_file_is_read_once(clip: Path) -> None:
    camera = open_camera(str(clip))
    assert (camera.fps, camera.size, camera.live) == (30.0, (64, 48), False)
    camera.close()
    frames = read_all(str(clip))
    assert len(frames) == 5
    assert [float(picture[..., 0].mean()) for picture in frames] == pytest.approx([20, 22, 24, 26, 28], abs=3)


def test_a_looped_file_begins_again(clip: Path) -> None:
    frames = read_all(str(clip), at_most=12, loop=True)
    assert all(np.array_equal(frames[index], frames[index % 5]) for index in range(12))


def test_a_box_is_cut_from_every_frame(clip: Path) -> None:
    camera = open_camera(str(clip), box=(10, 4, 20, 30))
    assert camera.size == (20, 30)
    assert camera.read().shape == (30, 20, 3)  # type: ignore[union-attr]
    camera.close()
    for box in [(50, 4, 20, 30), (0, 0, 0, 4), (-1, 0, 4, 4)]:
        with pytest.raises(InputError, match="leaves the frames, 64x48"):
            open_camera(str(clip), box=box)


@pytest.mark.skipif(find_spec("mtcnn") is None, reason="needs the extra: pip install 'lpkernels[face]'")
def test_the_face_is_found_in_the_first_frame_that_has_one(clip: Path, tmp_path: Path) -> None:
    frames = np.full((4, 200, 300, 3), (190, 200, 205), np.uint8)
    for picture in frames[1:]:
        picture[:, 90:290] = draw_portrait(200)
    path = write_clip(tmp_path / "face.mp4", list(frames))
    camera = open_camera(str(path), box="auto")
    side = camera.size[0]
    assert camera.size == (side, side)
    assert 140 < side < 230
    camera.close()
    pictures = read_all(str(path), box="auto")
    assert [picture.shape for picture in pictures] == [(side, side, 3)] * 4, "from the first frame on"
    middle = np.abs(pictures[1].astype(int) - (190, 200, 205)).max(2) > 40
    assert abs(middle.any(0).nonzero()[0].mean() - side / 2) < 0.12 * side
    with pytest.raises(InputError, match=r"no face was found in the first frames of camera .*clip\.mp4"):
        open_camera(str(clip), box="auto")


def test_what_cannot_be_opened_is_named(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.mp4 does not exist"):
        open_camera("nowhere.mp4")
    with pytest.raises(InputError, match="can be asked of a camera only"):
        open_camera(str(clip), fps=30)
    with pytest.raises(InputError, match="only a file can be looped"):
        open_camera("rtsp://127.0.0.1:1/x", loop=True)
    with pytest.raises(InputError, match="cannot be opened"):
        open_camera("rtsp://127.0.0.1:1/x")


@pytest.fixture
def server(clip: Path) -> Iterator[str]:
    """The clip's folder over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(clip.parent)))
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_recording_at_a_url_is_paced_like_a_file(server: str) -> None:
    camera = open_camera(f"{server}/clip.mp4")
    assert (camera.fps, camera.size, camera.live) == (30.0, (64, 48), False)
    camera.close()
    assert len(read_all(f"{server}/clip.mp4")) == 5


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Camera 0 is FFmpeg's test picture."""
    picture = "testsrc=size=48x32:rate=20:duration=0.5"
    monkeypatch.setattr(_camera, "_device", lambda name: (picture, "lavfi") if name == "0" else None)


def test_a_camera_comes_at_its_own_pace(drawn: None) -> None:
    camera = open_camera("0")
    assert (camera.fps, camera.size, camera.live) == (20.0, (48, 32), True)
    camera.close()
    frames = read_all("0")
    assert len(frames) == 9, "the first showed the size, and is stale when it is asked for"
    assert {picture.shape for picture in frames} == {(32, 48, 3)}
    with pytest.raises(InputError, match="only a file can be looped"):
        open_camera("0", loop=True)


def test_a_camera_without_a_picture_yet_is_asked_again(drawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    camera: Any = open_camera("0")

    def nothing_yet() -> Iterator[Frame]:
        raise av.BlockingIOError(11, "Resource temporarily unavailable")
        yield

    camera._frames = nothing_yet()
    assert camera.read().shape == (32, 48, 3)
    monkeypatch.setattr(_camera, "PATIENCE", 0.0)
    camera._frames = nothing_yet()
    with pytest.raises(LpkernelsError, match="gave no picture"):
        camera.read()
    camera.close()


def test_a_camera_that_is_lost_says_so(drawn: None) -> None:
    camera: Any = open_camera("0")

    def unplugged() -> Iterator[Frame]:
        raise av.OSError(19, "No such device")
        yield

    camera._frames = unplugged()
    with pytest.raises(LpkernelsError, match="camera 0 is lost: No such device"):
        camera.read()
    camera.close()


def test_numbers_name_cameras_as_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_camera.sys, "platform", "linux")
    monkeypatch.setattr(_camera.Path, "exists", lambda self: str(self) == "/dev/video3")
    assert _camera._device("3") == ("/dev/video3", "v4l2")
    with pytest.raises(InputError, match="/dev/video4 does not exist"):
        _camera._device("4")
    monkeypatch.setattr(_camera.sys, "platform", "darwin")
    assert _camera._device("1") == ("1:none", "avfoundation")
    monkeypatch.setattr(_camera.sys, "platform", "win32")
    devices = [
        SimpleNamespace(description="Microphone", media_types=["audio"]),
        SimpleNamespace(description="Webcam", media_types=["video"]),
    ]
    monkeypatch.setattr(av.device, "enumerate_input_devices", lambda kind: devices, raising=False)
    assert _camera._device("0") == ("video=Webcam", "dshow")
    with pytest.raises(InputError, match=r"cameras here: Webcam"):
        _camera._device("1")
    monkeypatch.setattr(_camera.sys, "platform", "plan9")
    with pytest.raises(InputError, match="plan9"):
        _camera._device("0")
    assert _camera._device("video=Webcam") == ("video=Webcam", "dshow")
    assert _camera._device("clip.mp4") is None


def test_wishes_go_to_cameras() -> None:
    assert _camera._wishes("v4l2", (640, 480), 60) == {"video_size": "640x480", "framerate": "60"}
    assert _camera._wishes("v4l2", None, None) == {}
    assert _camera._wishes("avfoundation", None, None) == {"framerate": "30"}


class FakeCamera:
    """Frames of level 0, 1, ..., each of which takes some time to read."""

    def __init__(self, clock: Clock, takes: list[float], live: bool) -> None:
        self.fps, self.size, self.live = 10.0, (6, 4), live
        self.closed = False
        self._clock, self._takes, self._level = clock, takes, 0

    def read(self) -> Frame | None:
        if self._level == len(self._takes):
            return None
        self._clock.now += self._takes[self._level]
        self._level += 1
        return frame(self._level - 1)

    def close(self) -> None:
        self.closed = True


def feed(takes: list[float], live: bool, stop_after: int | None = None) -> list[tuple[int, float]]:
    """(level, time since the start) of each frame that was pushed."""
    clock = Clock()
    began = clock.now
    pushed: list[tuple[int, float]] = []

    def pause(seconds: float) -> bool:
        clock.now += seconds
        return len(pushed) == stop_after

    camera = FakeCamera(clock, takes, live)
    with Feeder(camera, clock=clock, pause=pause) as feeder:
        assert not feeder.done
        feeder.start(lambda picture: pushed.append((int(picture[0, 0, 0]), round(clock.now - began, 6))))
        feeder._thread.join(SOON)  # type: ignore[union-attr]
        assert feeder.done
    assert camera.closed
    assert feeder.error is None
    return pushed


def test_frames_of_a_file_are_a_period_apart() -> None:
    assert feed([0.01, 0.03, 0.0, 0.05], live=False) == [(0, 0.01), (1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_short_delay_is_made_up_and_a_long_one_is_not() -> None:
    assert feed([0, 0.15, 0, 0], live=False) == [(0, 0), (1, 0.15), (2, 0.2), (3, 0.3)]
    assert feed([0, 1.0, 0, 0], live=False) == [(0, 0), (1, 1.0), (2, 1.0), (3, 1.1)]


def test_frames_of_a_camera_are_pushed_as_they_come() -> None:
    assert feed([0.03, 0.01, 0.2], live=True) == [(0, 0.03), (1, 0.04), (2, 0.24)]


def test_a_feeder_that_is_told_to_end_does() -> None:
    assert feed([0] * 9, live=False, stop_after=3) == [(0, 0), (1, 0.1), (2, 0.2)]


def test_an_error_ends_the_feeder_and_is_kept() -> None:
    camera = FakeCamera(Clock(), [0, 0], live=True)

    def refuse(picture: Frame) -> None:
        raise LpkernelsError("the session is closed")

    with Feeder(camera) as feeder:
        feeder.start(refuse)
        feeder._thread.join(SOON)  # type: ignore[union-attr]
    assert "closed" in str(feeder.error)


def test_a_feeder_that_never_began_closes_its_camera() -> None:
    camera = FakeCamera(Clock(), [0], live=True)
    with Feeder(camera) as feeder:
        assert not feeder.done
    assert camera.closed


def test_a_camera_that_hangs_is_left_open() -> None:
    camera = FakeCamera(Clock(), [0], live=True)
    go = threading.Event()
    camera.read = lambda: go.wait(SOON) and None  # type: ignore[method-assign]
    feeder = Feeder(camera)
    feeder.start(lambda picture: None)
    feeder.close(timeout=0)
    assert not camera.closed
    go.set()
    feeder.close()
    assert camera.closed
