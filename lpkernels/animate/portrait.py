"""A drawn portrait: a simple face whose head turns and whose eyes and mouth move, for demos and tests."""

from __future__ import annotations

import math
import tempfile
import wave
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lpkernels.animate._face import Head, Look, Pose, bump, shade
from lpkernels.animate.image import Frame, save_image
from lpkernels.animate.video import VideoWriter
from lpkernels.errors import InputError

_SUPERSAMPLING = 3
_LIGHT = (0.5, 0.45)  # where the backdrop is brightest, in picture widths
_NECK = (0.5, 0.68)  # the point that a roll turns about

SOURCE_LOOK = Look()
DRIVING_LOOK = Look(
    skin=(171, 120, 88),
    hair=(32, 28, 30),
    iris=(84, 54, 34),
    lips=(140, 66, 66),
    shirt=(196, 120, 58),
    background=(226, 214, 196),
)


def draw_portrait(
    size: int,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    eyes: float = 1.0,
    mouth: float = 0.0,
    look: Look = SOURCE_LOOK,
) -> Frame:
    """Draw a portrait, uint8 RGB (size, size, 3).

    Args:
        size: side in pixels, 16 to 4096.
        yaw, pitch, roll: head pose in degrees: turned to the right of the picture, up, clockwise.
        eyes: 0 closed to 1 open.
        mouth: 0 closed to 1 open.
        look: the person's colours.

    Raises:
        InputError: ``size`` is out of range.
    """
    if not 16 <= size <= 4096:
        raise InputError(f"size of a drawn portrait must lie between 16 and 4096 pixels, got {size}")
    side = size * _SUPERSAMPLING
    pose = Pose(yaw, pitch, roll, min(max(eyes, 0.0), 1.0), min(max(mouth, 0.0), 1.0))
    picture = _backdrop(side, look).copy()
    head = Image.new("RGBA", (side, side), (*look.skin, 0))
    Head(head, pose, look).draw()
    pivot = (_NECK[0] * side, _NECK[1] * side)
    head = head.rotate(-roll, Image.Resampling.BILINEAR, center=pivot)
    picture.paste(head, (0, 0), head)
    return np.array(picture.resize((size, size), Image.Resampling.BOX))


def driving_frames(count: int, size: int, look: Look = DRIVING_LOOK) -> Iterator[Frame]:
    """Yield ``count`` frames (uint8, (size, size, 3)) of a head that turns, nods, blinks and talks.

    The first frame is neutral, as relative motion wants it, and the last leads back to it: the clip loops.
    """
    for index in range(count):
        pose = _pose_at(index / count)
        yield draw_portrait(size, pose.yaw, pose.pitch, pose.roll, pose.eyes, pose.mouth, look)


def write_sample(
    folder: str | Path, *, frames: int = 72, size: int = 256, fps: int = 24, loops: int = 1
) -> tuple[Path, Path]:
    """Write ``source.png`` and ``driving.mp4`` (with a soft tone that follows the mouth) into an existing folder.

    Args:
        frames: to draw, which takes its time; the clip shows them ``loops`` times.

    Returns:
        The paths of the picture and of the clip.

    Raises:
        InputError: the folder does not exist, or a number is out of range.
        LpkernelsError: the folder cannot be written to.
    """
    for name, count in (("frames", frames), ("loops", loops)):
        if count < 1:
            raise InputError(f"{name} of the sample clip must be at least 1, got {count}")
    source, driving = Path(folder) / "source.png", Path(folder) / "driving.mp4"
    save_image(source, draw_portrait(size))
    with tempfile.TemporaryDirectory() as scratch:
        tone = Path(scratch) / "tone.wav"
        _write_tone(tone, frames, fps, loops)
        with VideoWriter(driving, fps, (size, size), audio_from=tone) as writer:
            drawn = driving_frames(frames, size)
            for frame in drawn if loops == 1 else list(drawn) * loops:
                writer.write(frame)
    return source, driving


def _pose_at(phase: float) -> Pose:
    """The looping motion: one turn to each side, a nod, two blinks, and syllables in the second half."""
    turn = 2 * math.pi * phase
    blink = max(bump(phase, 0.22, 0.05), bump(phase, 0.71, 0.05))
    talking = math.sin(math.pi * (phase - 0.3) / 0.6) if 0.3 < phase < 0.9 else 0.0
    return Pose(
        yaw=28 * math.sin(turn),
        pitch=9 * math.sin(2 * turn),
        roll=7 * math.sin(turn) * math.cos(turn / 2),
        eyes=1 - blink,
        mouth=talking * (0.5 - 0.5 * math.cos(9 * turn)),
    )


def _write_tone(path: Path, frames: int, fps: int, loops: int, rate: int = 24000) -> None:
    """A quiet A3 with two overtones, as loud as the mouth is open."""
    time = np.arange(round(frames * loops * rate / fps)) / rate
    opening = np.array([_pose_at(index / frames).mouth for index in range(frames)] * loops)
    loudness = 0.03 + 0.12 * np.interp(time * fps, np.arange(frames * loops), opening)
    wavelet = sum(np.sin(2 * np.pi * 220 * n * time) / n**2 for n in (1, 2, 3))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((loudness * wavelet * 32767).astype("<i2").tobytes())


@lru_cache(maxsize=2)
def _backdrop(side: int, look: Look) -> Image.Image:
    """Shoulders before a soft light, darker towards the corners: the same in every frame."""
    y, x = np.mgrid[0:side, 0:side] / side - np.array(_LIGHT[::-1])[:, None, None]
    light = 1.06 - 0.55 * (x * x + y * y)
    levels = np.clip(light[..., None] * np.array(look.background), 0, 255)
    picture = Image.fromarray(levels.astype(np.uint8))
    _draw_shoulders(ImageDraw.Draw(picture), side, look)
    return picture


def _draw_shoulders(draw: ImageDraw.ImageDraw, side: int, look: Look) -> None:
    def scaled(*values: float) -> list[float]:
        return [value * side for value in values]

    draw.rounded_rectangle(scaled(0.12, 0.82, 0.88, 1.3), radius=0.17 * side, fill=look.shirt)
    draw.rounded_rectangle(scaled(0.415, 0.6, 0.585, 0.9), radius=0.08 * side, fill=shade(look.skin, 0.86))
    draw.chord(scaled(0.385, 0.76, 0.615, 0.92), 0, 180, fill=shade(look.skin, 0.86))
    draw.arc(scaled(0.375, 0.75, 0.625, 0.93), 0, 180, fill=shade(look.shirt, 0.75), width=max(1, side // 60))
