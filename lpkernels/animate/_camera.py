"""Where live driving frames come from: a camera, a stream at a URL, or a file that stands in for one."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import av

from lpkernels.animate._files import reason
from lpkernels.animate.face import find_driving_box
from lpkernels.animate.image import MAX_PIXELS, Box, Frame, crop, crop_padded
from lpkernels.animate.video import VideoReader, _upright
from lpkernels.errors import InputError, LpkernelsError

PATIENCE = 10.0  # seconds without a picture before a camera counts as lost
_NAP = 0.002
_LOOKED_AT = 90  # frames in which a face is looked for
_USUAL_FPS = 30.0
_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


class Camera(Protocol):
    """Driving frames in order.

    Attributes:
        fps: frames a second, as announced.
        size: (width, height) of a frame in pixels.
        live: whether frames come at their own pace; if not, the reader keeps the pace.
    """

    fps: float
    size: tuple[int, int]
    live: bool

    def read(self) -> Frame | None:
        """The next frame, uint8 (H, W, 3) RGB, in memory of its own; None: that was the last."""

    def close(self) -> None:
        """Let the camera go; safe to call twice."""


def open_camera(
    name: str,
    *,
    box: Box | Literal["auto"] | None = None,
    loop: bool = False,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
) -> Camera:
    """Open what ``name`` says and read its first picture.

    Args:
        name: the number of a camera (V4L2, AVFoundation, DirectShow), a V4L2 device's path, a DirectShow device as
            ``video=NAME``, a URL, or the path of a video file.
        box: x, y, width, height of the face in every frame, in pixels; the whole frame without. ``"auto"``: around the
            largest face in the first frame that has one, black where that leaves the picture.
        loop: begin a file again at its end.
        size, fps: (width, height) and rate to ask a camera for.

    Raises:
        InputError: there is no such camera or file, it is no video, ``box`` leaves its pictures, there is no face in
            its first frames, or an option does not go with it.
        LpkernelsError: the camera or stream gives no picture.
    """
    device = _device(name)
    if device is None and (size is not None or fps is not None):
        raise InputError(f"a size and a rate can be asked of a camera only, not of {name}")
    if loop and (device is not None or _is_url(name)):
        raise InputError(f"only a file can be looped, not {name}")
    if device is None and not _is_url(name):
        camera: Camera = _Clip(name, loop)
    else:
        path, kind = device if device is not None else (name, None)
        camera = _Stream(name, path, kind, _wishes(kind, size, fps))
    if box is None:
        return camera
    try:
        return _Cropped(camera, _face_box(name, camera) if box == "auto" else box, padded=box == "auto")
    except BaseException:
        camera.close()
        raise


def _face_box(name: str, camera: Camera) -> Box:
    """The box around the largest face in the first frame that has one; a file begins anew afterwards."""
    for _ in range(_LOOKED_AT):
        frame = camera.read()
        box = None if frame is None else find_driving_box([frame])
        if box is not None:
            if isinstance(camera, _Clip):
                camera.rewind()
            return box
    raise InputError(f"no face was found in the first frames of camera {name}; give a box as driving crop, x,y,w,h")


def _is_url(name: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*://", name, re.IGNORECASE) is not None


def _device(name: str) -> tuple[str, str] | None:
    """What FFmpeg calls the camera, and FFmpeg's name of the system's cameras; None if ``name`` is no camera."""
    if name.startswith("video="):
        return name, "dshow"
    if name.isdecimal():
        kind = _FORMATS.get(sys.platform)
        if kind == "v4l2":
            return _v4l2(name)
        if kind == "avfoundation":
            return f"{name}:none", kind
        if kind == "dshow":
            return _dshow(int(name))
        raise InputError(f"camera {name}: cameras are not known on {sys.platform}; name a file or URL")
    return (name, "v4l2") if Path(name).is_char_device() else None


def _v4l2(number: str) -> tuple[str, str]:
    path = Path(f"/dev/video{number}")
    if not path.exists():
        there = ", ".join(sorted(str(other) for other in Path("/dev").glob("video*"))) or "none"
        raise InputError(f"camera {number}: {path} does not exist (cameras here: {there})")
    return str(path), "v4l2"


def _dshow(number: int) -> tuple[str, str]:
    listing = getattr(getattr(av, "device", None), "enumerate_input_devices", None)
    if listing is None:
        raise InputError(f"camera {number}: this PyAV cannot number cameras; name one, as --camera 'video=NAME'")
    names = [device.description for device in listing("dshow") if "video" in device.media_types]
    if number >= len(names):
        raise InputError(f"camera {number}: there is none (cameras here: {', '.join(names) or 'none'})")
    return f"video={names[number]}", "dshow"


def _wishes(kind: str | None, size: tuple[int, int] | None, fps: float | None) -> dict[str, str]:
    wishes = {} if size is None else {"video_size": f"{size[0]}x{size[1]}"}
    if fps is not None or kind == "avfoundation":  # AVFoundation takes no rate but those of the camera; all have 30
        wishes["framerate"] = f"{fps or _USUAL_FPS:g}"
    return wishes


class _Clip:
    """A video file."""

    live = False

    def __init__(self, name: str, loop: bool) -> None:
        self._name, self._loop = name, loop
        self._reader = VideoReader(name)
        self.fps, self.size = float(self._reader.fps), self._reader.size

    def read(self) -> Frame | None:
        frame = next(self._reader, None)
        if frame is None and self._loop:
            self.rewind()
            frame = next(self._reader, None)
        return frame

    def rewind(self) -> None:
        """Begin again at the first frame."""
        self._reader.close()
        self._reader = VideoReader(self._name)

    def close(self) -> None:
        self._reader.close()


class _Stream:
    """A camera or a URL, decoded without delay."""

    def __init__(self, name: str, path: str, kind: str | None, wishes: dict[str, str]) -> None:
        self._name = name
        what = {"format": kind} if kind is not None else {"timeout": (PATIENCE, PATIENCE)}
        try:
            self._container: Any = av.open(path, options=wishes, **what)  # type: ignore[call-overload]
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"camera {name} cannot be opened: {reason(error)}") from None
        try:
            if not self._container.streams.video:
                raise InputError(f"camera {name} has no pictures")
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:
                raise InputError(f"camera {name} sends a format that this build of PyAV cannot decode")
            self._stream.thread_type = "SLICE"  # threads of whole frames would hold some back
            self.fps = float(self._stream.average_rate or self._stream.guessed_rate or _USUAL_FPS)
            self.live = not self._container.duration  # a recording at a URL knows how long it is
            self._frames = self._decode()
            self._first: Frame | None = None
            self._first = self.read()
        except BaseException:
            self.close()
            raise
        if self._first is None:
            self.close()
            raise InputError(f"camera {name} ended before its first picture")
        self.size = (self._first.shape[1], self._first.shape[0])
        if self.live:
            self._first = None  # stale when the first frame is asked for

    def _decode(self) -> Iterator[Frame]:
        for frame in self._container.decode(self._stream):
            if frame.width * frame.height > MAX_PIXELS:
                raise LpkernelsError(f"camera {self._name}: a picture of {frame.width}x{frame.height} is too large")
            yield _upright(frame)

    def read(self) -> Frame | None:
        if self._first is not None:
            frame, self._first = self._first, None
            return frame
        given_up = time.monotonic() + PATIENCE
        while True:
            try:
                return next(self._frames, None)
            except BlockingIOError:  # no picture yet, on systems that do not wait for one
                if time.monotonic() >= given_up:
                    raise LpkernelsError(f"camera {self._name} gave no picture for {PATIENCE:g} s") from None
                time.sleep(_NAP)
                self._frames = self._decode()
            except (av.FFmpegError, OSError, ValueError) as error:
                raise LpkernelsError(f"camera {self._name} is lost: {reason(error)}") from None

    def close(self) -> None:
        self._container.close()


class _Cropped:
    """The same box of every frame."""

    def __init__(self, camera: Camera, box: Box, padded: bool) -> None:
        self._camera, self._box, self._cut = camera, box, crop_padded if padded else crop
        x, y, width, height = box
        outside = min(x, y) < 0 or x + width > camera.size[0] or y + height > camera.size[1]
        if width < 1 or height < 1 or (outside and not padded):
            raise InputError(
                f"driving crop {x},{y},{width},{height} leaves the frames, {'x'.join(map(str, camera.size))}"
            )
        self.fps, self.live, self.size = camera.fps, camera.live, (width, height)

    def read(self) -> Frame | None:
        frame = self._camera.read()
        return None if frame is None else self._cut(frame, self._box)

    def close(self) -> None:
        self._camera.close()
