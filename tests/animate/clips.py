"""Small clips that tests draw for themselves."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from lpkernels.animate.image import Frame
from lpkernels.animate.video import VideoWriter


def moving_frames(count: int, size: tuple[int, int] = (64, 48)) -> list[Frame]:
    """Pictures (width, height = ``size``) of one colour each; red tells which frame it is."""
    return [np.full((size[1], size[0], 3), (20 + 2 * index, 120, 90), np.uint8) for index in range(count)]


def noise_frames(count: int, size: int = 64) -> list[Frame]:
    """Pictures that do not compress, so that a clip has bytes to lose."""
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def write_clip(path: Path, frames: list[Frame], fps: Fraction | float = 25, audio_from: Path | None = None) -> Path:
    """Write ``frames`` as an MP4."""
    height, width = frames[0].shape[:2]
    with VideoWriter(path, fps, (width, height), audio_from=audio_from) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_tone(path: Path, seconds: float, rate: int = 44100, channels: int = 1) -> Path:
    """Write a sine as 16-bit PCM."""
    samples = (8000 * np.sin(np.arange(int(seconds * rate)) * 0.06)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples, channels).tobytes())
    return path


def write_sound(path: Path, codec: str, seconds: float, rate: int = 48000) -> Path:
    """Write a sine with any codec that the container of ``path`` holds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        total = int(seconds * rate)
        sine = (0.3 * np.sin(np.arange(total) * 0.06)).astype(np.float32)
        for start in range(0, total, 1024):
            block = sine[start : start + 1024]
            frame = av.AudioFrame.from_ndarray(np.stack([block, block]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def streams(path: Path) -> dict[str, tuple[str, float]]:
    """Kind of stream -> (codec, seconds)."""
    with av.open(str(path)) as container:
        return {
            stream.type: (stream.codec_context.name, float((stream.duration or 0) * stream.time_base))
            for stream in container.streams
        }
