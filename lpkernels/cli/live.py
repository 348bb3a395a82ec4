"""``lpkernels live``: a source picture moved by a camera, as it happens."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernels import __version__
from lpkernels.cli import INTERRUPTED, OK
from lpkernels.cli._live_outputs import Preview, VirtualCamera, check_virtual_camera, open_preview
from lpkernels.cli._live_report import Memory, Status, summary, write_report
from lpkernels.cli.animate import motion_options
from lpkernels.cli.options import AUTO, add_model_options, choose_engine, face_box, load_model
from lpkernels.errors import InputError, LpkernelsError

if TYPE_CHECKING:
    from lpkernels.animate._camera import Camera
    from lpkernels.animate._feeder import Feeder
    from lpkernels.animate.image import Frame
    from lpkernels.animate.session import Session

_PERIOD = 1 / 30  # seconds between looks at the window and the keys while no picture comes
_STATS_PERIOD = 0.5
_EPILOG = """\
keys in the window: r takes the present face as the neutral one, 1 to 9 choose a source, q or Escape ends

examples:
  lpkernels live -s portrait.jpg --camera 0 --weights pretrained_weights
  lpkernels live -s photo.jpg --crop auto --paste-back --camera 0 --driving-crop auto --weights pretrained_weights
  lpkernels live -s portrait.jpg --camera 0 --virtual-camera --no-window --weights pretrained_weights
  lpkernels live -s a.jpg -s b.jpg --camera rtsp://host/cam --driving-crop 420,80,512,512 --weights pretrained_weights
  lpkernels live -s portrait.jpg --camera clip.mp4 --loop --seconds 600 --no-window --stats out.json --random-weights 0
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    text = "Animate a source picture with a camera, live."
    parser = subparsers.add_parser("live", help=text, description=text, epilog=_EPILOG)
    parser.set_defaults(run=run, eye_ratio=None, lip_ratio=None, source_eye_ratio=None, source_lip_ratio=None)
    parser.add_argument(
        "-s",
        "--source",
        type=Path,
        required=True,
        action="append",
        metavar="FILE",
        help="picture with one face, filling most of it; again for further ones, to switch between",
    )
    parser.add_argument(
        "--camera",
        required=True,
        metavar="N|FILE|URL",
        help="number of a camera, a video file (played at its own rate), or the URL of a stream",
    )
    parser.add_argument("--camera-size", type=_size, metavar="WxH", help="picture size to ask the camera for")
    parser.add_argument("--camera-fps", type=_positive, metavar="FPS", help="frame rate to ask the camera for")
    parser.add_argument("--loop", action="store_true", help="begin a file again at its end")
    parser.add_argument("--virtual-camera", action="store_true", help="be a camera for other programs (pyvirtualcam)")
    parser.add_argument("--no-window", action="store_true", help="show no preview")
    parser.add_argument("--seconds", type=_positive, metavar="T", help="end after so long (default: when told to)")
    parser.add_argument(
        "--stats", type=Path, metavar="FILE", help="write counts, latencies and memory as JSON at the end"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no status line")
    add_model_options(parser)
    _add_motion(parser)


def _add_motion(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("framing and motion", "What is not boxed is squeezed into a square as a whole.")
    group.add_argument(
        "--crop",
        type=face_box,
        metavar="X,Y,W,H|auto",
        help="box of the source (of a single one) around the face; auto: each source's largest face (lpkernels[face])",
    )
    group.add_argument(
        "--driving-crop",
        type=face_box,
        metavar="X,Y,W,H|auto",
        help="box of every camera frame around the face; auto: around the face in the first frame",
    )
    group.add_argument("--paste-back", action="store_true", help="show the whole source picture, the face in its place")
    group.add_argument("--absolute", action="store_true", help="take the driving motion itself, not its change")
    group.add_argument("--region", choices=("all", "exp", "pose", "lip", "eyes"), default="all", help="what may move")
    group.add_argument("--driving-multiplier", type=float, default=1.0, metavar="X", help="strength of the motion (1)")
    group.add_argument(
        "--driving-option",
        choices=("pose-friendly", "expression-friendly"),
        default="pose-friendly",
        help="which trade-off",
    )
    group.add_argument("--no-stitching", action="store_true", help="let the shoulders move along")


def run(args: argparse.Namespace) -> int:
    """Animate until the end, and print a summary."""
    _check(args)
    options = motion_options(args)

    from lpkernels.animate._camera import open_camera
    from lpkernels.animate._feeder import Feeder
    from lpkernels.animate.animator import Animator
    from lpkernels.animate.session import Session

    with contextlib.ExitStack() as stack:
        camera = open_camera(
            args.camera, box=args.driving_crop, loop=args.loop, size=args.camera_size, fps=args.camera_fps
        )
        feeder = stack.enter_context(Feeder(camera))
        model = load_model(args)
        animator = Animator(model, args.source[0], options=options, crop=args.crop, paste_back=args.paste_back)
        names = [f"{number}: {path}" for number, path in enumerate(args.source, 1)]
        session = stack.enter_context(Session(animator, source_name=names[0], size=camera.size[::-1]))
        for name, path in zip(names[1:], args.source[1:], strict=True):
            session.add_source(name, path, args.crop)
        memory = Memory(model.device)
        live = _Live(session, feeder, _outputs(args, stack, camera, animator.frame_size), Status(args.quiet), memory)
        ended, code, failure = _play(live, args.seconds)
        feeder.close()
        session.close()
        stats = session.stats()
        print(summary(stats, ended))
        if args.stats is not None:
            facts = {
                "lpkernels": __version__,
                "device": _device_name(model.device),
                "engine": choose_engine(args.engine, model.device),
                "precision": str(model.dtype).removeprefix("torch."),
                "camera": args.camera,
                "camera_size": list(camera.size),
                "camera_fps": camera.fps,
                "sources": names,
                "frame_size": list(animator.frame_size[::-1]),
                "ended": ended,
            }
            write_report(args.stats, facts, stats, memory)
        if failure is not None:
            raise failure
        return code


def _check(args: argparse.Namespace) -> None:
    """Answer for what can be wrong before a camera is opened and weights are read."""
    from lpkernels.animate._files import PendingFile, existing_file
    from lpkernels.animate.face import check_face_finder

    for path in args.source:
        existing_file(path, "--source")
    if AUTO in (args.crop, args.driving_crop):
        check_face_finder()
    if len(args.source) > 1 and args.crop not in (None, AUTO):
        raise InputError("--crop is the box of one source; cut the pictures yourself where there are several")
    if args.virtual_camera:
        if args.paste_back and len(args.source) > 1:
            raise InputError("--virtual-camera has one size: with --paste-back give one --source")
        check_virtual_camera()
    if args.stats is not None:
        PendingFile(args.stats).discard()


class _Live:
    """The loop that takes pictures from the session to where they are seen, on the main thread."""

    def __init__(
        self,
        session: Session,
        feeder: Feeder,
        outputs: tuple[Preview | None, VirtualCamera | None],
        status: Status,
        memory: Memory,
    ) -> None:
        self._session, self._feeder, self._status, self._memory = session, feeder, status, memory
        self._window, self._camera = outputs
        self._looked = -math.inf

    def run(self, seconds: float | None, clock: Callable[[], float]) -> str:
        """Go on until there is a reason to end, and return it."""
        self._feeder.start(lambda frame: self._session.push(frame, copy=False))
        end = math.inf if seconds is None else clock() + seconds
        while True:
            over = self._feeder.done and self._idle()
            frame = self._session.wait(0 if over else min(_PERIOD, max(end - clock(), 0)))
            self._show(None if frame is None else frame.picture)
            now = clock()
            if now >= self._looked + _STATS_PERIOD:
                self._looked = now
                stats = self._session.stats()
                self._memory.look(stats)
                self._status.tick(stats)
            if self._window is not None and self._window.closed:
                return "the window was closed"
            if now >= end:
                return "the time was up"
            if over and frame is None:
                if self._feeder.error is not None:
                    raise self._feeder.error
                return "the camera ended"

    def end(self) -> None:
        """A last look."""
        self._memory.look(self._session.stats())
        self._status.end()

    def _idle(self) -> bool:
        stats = self._session.stats()
        return not (stats.waiting or stats.working)

    def _show(self, picture: Frame | None) -> None:
        if self._camera is not None:
            held = self._session.latest() if picture is None else None
            shown = picture if held is None else held.picture
            if shown is not None:
                self._camera.show(shown)
        if self._window is not None:
            if picture is not None:
                self._window.show(picture)
            for key in self._window.update():
                self._press(key)

    def _press(self, key: str) -> None:
        if key == "r":
            self._session.reset()
        elif key.isdecimal() and 1 <= int(key) <= len(self._session.sources):
            self._session.switch_source(self._session.sources[int(key) - 1])


def _play(live: _Live, seconds: float | None) -> tuple[str, int, Exception | None]:
    """Run, and say why it ended, with which exit code or error."""
    try:
        return live.run(seconds, time.monotonic), OK, None
    except KeyboardInterrupt:
        return "interrupted", INTERRUPTED, None
    except LpkernelsError as error:
        return f"failed: {error}", OK, error
    finally:
        live.end()


def _outputs(
    args: argparse.Namespace, stack: contextlib.ExitStack, camera: Camera, size: tuple[int, int]
) -> tuple[Preview | None, VirtualCamera | None]:
    window = virtual = None
    if args.virtual_camera:
        virtual = VirtualCamera(size[1], size[0], camera.fps)
        stack.callback(virtual.close)
        print(f"virtual camera: {virtual.device}")
    if not args.no_window:
        window = open_preview("lpkernels live")
        if window is not None:
            stack.callback(window.close)
    return window, virtual


def _device_name(device: Any) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected a width and height such as 1280x720, got {text!r}")
    return int(sides[0]), int(sides[1])
