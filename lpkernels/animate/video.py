"""Video files in and out: frames one at a time, H.264 with the driving clip's sound, never half a file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from lpkernels.animate._audio import AudioTrack
from lpkernels.animate._files import PendingFile, existing_file, reason
from lpkernels.animate.image import MAX_PIXELS, Frame, check_frame
from lpkernels.errors import InputError, LpkernelsError

VIDEO_SUFFIX = ".mp4"
_LOCAL_ONLY = {"protocol_whitelist": "file"}  # a playlist in disguise opens no connection
_RIGHT_ANGLE = 90
_BT709 = 1  # the code of the BT.709 primaries and transfer function in H.264 headers


class VideoReader:
    """Frames of a video file, decoded as they are asked for: an iterator of uint8 RGB arrays (height, width, 3).

    The display rotation that phones write is applied. The first frame is decoded on opening, so what cannot be read
    is reported there.

    Attributes:
        fps: mean frames per second.
        size: (width, height) in pixels, after rotation.
        frame_count: number of frames as the file declares it, or estimated from its duration; None if neither is known.

    Raises:
        InputError: the file is missing, is not a video, holds no picture, is cut short or damaged; the last also while
            iterating, and the message then says after how many frames.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = existing_file(path, "video")
        self._decoded = 0
        try:
            self._container = av.open(f"file:{self.path}", options=_LOCAL_ONLY)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{self.path} is not a video that can be read: {_cause(error)}") from None
        try:
            self._frames = self._decode()
            self._first: Frame | None = next(self._frames, None)
            if self._first is None:
                raise InputError(f"video {self.path} has no picture in it")
        except BaseException:
            self.close()
            raise
        self.size: tuple[int, int] = (self._first.shape[1], self._first.shape[0])

    def _decode(self) -> Iterator[Frame]:
        container = self._container
        if not container.streams.video:
            raise InputError(f"{self.path} has no video stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise InputError(f"video {self.path} is in a format that this build of PyAV cannot decode")
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            size = f"{stream.codec_context.width}x{stream.codec_context.height}"
            raise InputError(f"video {self.path} is too large: {size}, at most {MAX_PIXELS:,} pixels")
        rate = stream.average_rate or stream.guessed_rate
        if not rate or rate <= 0:
            raise InputError(f"video {self.path} does not say its frame rate")
        self.fps: Fraction = Fraction(rate)
        self.frame_count: int | None = stream.frames or _estimate_frames(container, self.fps)
        _check_length(self.path, stream)
        stream.thread_type = "AUTO"
        try:
            for frame in container.decode(stream):
                self._decoded += 1
                yield _upright(frame)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"video {self.path} is damaged after frame {self._decoded}: {_cause(error)}") from None

    def __iter__(self) -> VideoReader:
        return self

    def __next__(self) -> Frame:
        if self._first is not None:
            frame, self._first = self._first, None
            return frame
        return next(self._frames)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _upright(frame: av.VideoFrame) -> Frame:
    turns, rest = divmod(round(frame.rotation), _RIGHT_ANGLE)
    array = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return array if rest or turns % 4 == 0 else np.ascontiguousarray(np.rot90(array, turns))


def _estimate_frames(container: Any, fps: Fraction) -> int | None:
    return round(container.duration * fps / av.time_base) if container.duration else None


def _check_length(path: Path, stream: Any) -> None:
    """An MP4's index says where its last sample lies; FFmpeg itself ends without a word when the file is shorter."""
    entries = getattr(stream, "index_entries", None)  # PyAV 16 and later
    if not stream.frames or not entries or len(entries) < stream.frames:
        return
    needed = max(entries[i].pos + entries[i].size for i in range(len(entries)))
    if path.stat().st_size < needed:
        raise InputError(f"video {path} is cut short: {path.stat().st_size:,} bytes of at least {needed:,}")


def _cause(error: BaseException) -> str:
    return reason(error) if isinstance(error, OSError | av.FFmpegError) else " ".join(str(error).split())


class VideoWriter:
    """Write frames as H.264 (yuv420p, BT.709) in an MP4 that appears under its name only when complete.

    Use it as a context manager: leaving the block closes the file and gives it its name; an exception, Ctrl-C
    included, removes what was written. A side of odd length is made even by repeating its last row or column.

    Args:
        path: output, ending in .mp4; an earlier file is replaced when the new one is complete.
        fps: frames per second.
        size: (width, height) of every frame.
        audio_from: a media file whose first audio track is taken along, from the start of its picture, cut where the
            written picture ends. Copied bit for bit where MP4 holds the codec, else encoded as AAC. A file without
            audio gives a silent video.
        crf: x264's constant rate factor, 0 (lossless) to 51.

    Raises:
        InputError: the suffix is not .mp4, the folder does not exist, the rate or size is impossible.
        LpkernelsError: the folder cannot be written to, or writing fails later.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction | float,
        size: tuple[int, int],
        *,
        audio_from: str | Path | None = None,
        crf: int = 15,
    ) -> None:
        check_video_output(path)
        if not 0 < fps <= 1000:
            raise InputError(f"fps must lie between 0 and 1000, got {fps}")
        if min(size) < 1 or max(size) > 16384:
            raise InputError(f"size must lie between 1x1 and 16384x16384 pixels, got {size[0]}x{size[1]}")
        self.path = Path(path)
        self.size = size
        self.fps = Fraction(fps).limit_denominator(100_000)
        self.frames_written = 0
        self._closed = False
        self._audio: AudioTrack | None = None
        self._pending = PendingFile(self.path)
        try:
            self._open(crf, audio_from)
        except BaseException:
            self.abort()
            raise

    def _open(self, crf: int, audio_from: str | Path | None) -> None:
        self._container: Any = None
        if audio_from is not None:
            self._audio = AudioTrack.of(audio_from)
        try:
            file = f"file:{self._pending.temporary}"
            self._container = av.open(file, "w", format="mp4", options={"movflags": "+faststart"})
            stream: Any = self._container.add_stream("libx264", rate=self.fps)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise LpkernelsError(f"cannot write {self.path} as H.264 video: {reason(error)}") from None
        stream.width, stream.height = (side + side % 2 for side in self.size)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf)}
        context = stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = context.color_trc = _BT709
        self._stream = stream
        if self._audio is not None:
            self._audio.attach(self._container)

    @property
    def has_audio(self) -> bool:
        """Whether an audio track goes into the file."""
        return self._audio is not None

    def write(self, frame: Frame) -> None:
        """Append one uint8 RGB frame (height, width, 3) of the writer's size."""
        if self._closed:
            raise ValueError(f"{self.path} is closed; no frame can be written any more")
        check_frame("frame", frame)
        if frame.shape[:2] != self.size[::-1]:
            raise ValueError(f"frame must be {self.size[0]}x{self.size[1]}, got {frame.shape[1]}x{frame.shape[0]}")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        picture.pts, picture.time_base = self.frames_written, 1 / self.fps
        self._encode(picture)
        self.frames_written += 1
        if self._audio is not None:
            self._audio.write_until(self.frames_written / self.fps)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except (av.FFmpegError, OSError) as error:
            raise LpkernelsError(f"cannot write {self.path}: {reason(error)}") from None

    def close(self) -> None:
        """Finish the file and give it its name. Without a single frame there is no file and LpkernelsError."""
        if self._closed:
            return
        try:
            if self.frames_written == 0:
                raise LpkernelsError(f"no frame was written to {self.path}, so there is no video")
            self._encode(None)
            if self._audio is not None:
                self._audio.finish(self.frames_written / self.fps)
            try:
                self._container.close()
            except (av.FFmpegError, OSError) as error:
                raise LpkernelsError(f"cannot write {self.path}: {reason(error)}") from None
        except BaseException:
            self.abort()
            raise
        self._release()
        self._pending.commit()

    def abort(self) -> None:
        """Give up: remove what was written; nothing appears under the name. Safe to call twice."""
        if not self._closed:
            self._release()
            self._pending.discard()

    def _release(self) -> None:
        self._closed = True
        if self._audio is not None:
            self._audio.close()
        if self._container is not None:
            try:
                self._container.close()
            except (av.FFmpegError, OSError):
                self._container = None  # the first failure is the one to report

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def check_video_output(path: str | Path) -> None:
    """Raise InputError unless ``path`` ends in .mp4."""
    if Path(path).suffix.lower() != VIDEO_SUFFIX:
        raise InputError(f"{path} must end in {VIDEO_SUFFIX} to hold a video")
