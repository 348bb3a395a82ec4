"""The driving clip's sound, carried beside the written picture packet by packet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from lpkernels.animate._files import existing_file, reason
from lpkernels.errors import InputError

# What players expect in an MP4; anything else becomes AAC.
_COPIED_CODECS = frozenset({"aac", "ac3", "alac", "eac3", "mp3", "opus"})
_AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})


class AudioTrack:
    """The first audio stream of a file, written into another container in step with its picture.

    Time zero is the start of the file's picture (of its sound where there is no picture). Sound and picture are
    interleaved as they come, so memory does not grow with the clip.
    """

    def __init__(self, path: Path, container: Any) -> None:
        self._path = path
        self._input = container
        self._stream = container.streams.audio[0]
        video = container.streams.video
        first = video[0] if video else self._stream
        self._origin = Fraction((first.start_time or 0) * first.time_base)
        self._copied = self._stream.codec_context.name.removesuffix("float") in _COPIED_CODECS
        self._held: Any = None
        self._items: Iterator[Any] = iter(())

    @classmethod
    def of(cls, path: str | Path) -> AudioTrack | None:
        """The audio of a media file, or None if it has none.

        Raises:
            InputError: the file cannot be read, or no decoder knows its audio.
        """
        path = existing_file(path, "audio source")
        try:
            container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{path} is not a media file that can be read: {reason(error)}") from None
        if not container.streams.audio:
            container.close()
            return None
        if container.streams.audio[0].codec_context is None:
            container.close()
            raise InputError(f"the audio of {path} is in a format that cannot be decoded; leave the audio out")
        return cls(path, container)

    @classmethod
    def is_in(cls, path: str | Path) -> bool:
        """Whether ``of`` gives a track; raises as it does."""
        track = cls.of(path)
        if track is None:
            return False
        track.close()
        return True

    def attach(self, output: Any) -> None:
        """Add the audio stream to ``output``; call before the first packet is written there."""
        self._output = output
        if self._copied:
            self._target = output.add_stream_from_template(self._stream)
            self._items = (packet for packet in self._input.demux(self._stream) if packet.dts is not None)
        else:
            context = self._stream.codec_context
            rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48000
            layout = "mono" if context.layout.nb_channels == 1 else "stereo"
            self._target = output.add_stream("aac", rate=rate, layout=layout)
            self._items = self._input.decode(self._stream)

    def write_until(self, seconds: Fraction) -> None:
        """Write the sound that ends before ``seconds`` of the picture."""
        with _naming(self._path):
            while (item := self._next()) is not None:
                if self._end(item) > seconds:
                    self._held = item
                    return
                self._write(item)

    def finish(self, seconds: Fraction) -> None:
        """Write the sound up to ``seconds`` and complete the stream: never longer than the picture."""
        self.write_until(seconds)
        if self._copied:
            return
        with _naming(self._path):
            if self._held is not None:
                head = _head(self._held, round((seconds - self._start(self._held)) * self._held.sample_rate))
                if head is not None:
                    self._write(head)
            self._output.mux(self._target.encode(None))

    def close(self) -> None:
        """Close the input."""
        self._input.close()

    def _next(self) -> Any:
        if self._held is not None:
            item, self._held = self._held, None
            return item
        return next(self._items, None)

    def _start(self, item: Any) -> Fraction:
        return Fraction(item.pts * item.time_base) - self._origin

    def _end(self, item: Any) -> Fraction:
        if self._copied:
            return self._start(item) + Fraction((item.duration or 0) * item.time_base)
        return self._start(item) + Fraction(item.samples, item.sample_rate)

    def _write(self, item: Any) -> None:
        shift = round(self._origin / item.time_base)
        item.pts -= shift
        if self._copied:
            item.dts -= shift
            item.stream = self._target
            self._output.mux(item)
        else:
            self._output.mux(self._target.encode(item))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn FFmpeg's errors about the sound into one line that names the file."""
    try:
        yield
    except av.FFmpegError as error:
        raise InputError(f"the audio of {path} cannot be carried over: {reason(error)}; leave the audio out") from None


def _head(frame: av.AudioFrame, samples: int) -> av.AudioFrame | None:
    """The first ``samples`` samples of a frame, None if that is none of them."""
    if samples <= 0:
        return None
    array = frame.to_ndarray()
    per_sample = 1 if frame.format.is_planar else frame.layout.nb_channels
    head = av.AudioFrame.from_ndarray(
        array[:, : samples * per_sample].copy(), format=frame.format.name, layout=frame.layout.name
    )
    head.sample_rate, head.pts, head.time_base = frame.sample_rate, frame.pts, frame.time_base
    return head
