"""Video in and out: frame for frame, rotation, sound, every damaged file, and never half a file."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from lpkernels.animate import video as video_module
from lpkernels.animate.video import VideoReader, VideoWriter
from lpkernels.errors import InputError, LpkernelsError
from tests.animate.clips import moving_frames, noise_frames, streams, write_clip, write_sound, write_tone


def test_round_trip_keeps_frames_rate_and_colour(tmp_path: Path) -> None:
    frames = moving_frames(60)
    path = write_clip(tmp_path / "a.mp4", frames, Fraction(30000, 1001))
    with VideoReader(path) as reader:
        assert reader.fps == Fraction(30000, 1001)
        assert reader.size == (64, 48)
        assert reader.frame_count == 60
        decoded = list(reader)
    assert len(decoded) == 60
    assert all(frame.dtype == np.uint8 and frame.shape == (48, 64, 3) for frame in decoded)
    for frame, original in zip(decoded, frames, strict=True):
        assert np.abs(frame.astype(int) - original).max() <= 3
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


def test_stream_is_h264_that_players_know(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_frames(3))
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert int(context.colorspace) == 1
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")


def test_odd_sizes_are_made_even(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_frames(2, (31, 17)))
    with VideoReader(path) as reader:
        frame = next(reader)
    assert frame.shape == (18, 32, 3)
    assert np.abs(frame[17, 31].astype(int) - (20, 120, 90)).max() <= 3


@pytest.mark.parametrize("fps", [12.5, 29.97, 1, 120])
def test_rates(tmp_path: Path, fps: float) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_frames(4), fps)
    with VideoReader(path) as reader:
        assert float(reader.fps) == pytest.approx(fps, rel=1e-4)


def test_reader_is_lazy_and_reads_each_frame_once(tmp_path: Path) -> None:
    reader = VideoReader(write_clip(tmp_path / "a.mp4", moving_frames(5)))
    assert next(reader).shape == (48, 64, 3)
    assert sum(1 for _ in reader) == 4
    assert list(reader) == []
    reader.close()
    reader.close()


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".avi", ".ts"])
def test_other_containers(tmp_path: Path, suffix: str) -> None:
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in moving_frames(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / f"a{suffix}") as reader:
        assert reader.fps == 24
        assert reader.frame_count in (11, 12)
        assert sum(1 for _ in reader) == 12


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_is_undone(tmp_path: Path, angle: int) -> None:
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:8, :8] = 255  # white in the upper left of the stored picture
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(angle)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "a.mp4") as reader:
        size, frame = reader.size, next(reader)
    assert size == ((64, 32) if angle == 180 else (32, 64))
    assert np.abs(frame.astype(int) - np.rot90(picture, angle // 90)).mean() < 4


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", noise_frames(40)).read_bytes()
    middle = len(whole) // 2
    content = {
        "zero.mp4": b"",
        "junk.mp4": bytes(range(256)) * 8,
        "half.mp4": whole[:middle],
        "no_index.mp4": whole[: whole.index(b"moov") + 8],
        "holes.mp4": whole[:middle] + bytes(8000) + whole[middle + 8000 :],
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost:9/a.ts\n#EXT-X-ENDLIST\n",
    }
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    for name, words in {
        "missing.mp4": "does not exist",
        "zero.mp4": "empty",
        "junk.mp4": "not a video",
        "half.mp4": "cut short",
        "no_index.mp4": "no video stream",
        "holes.mp4": "damaged after frame",
        "playlist.mp4": "playlist",
        ".": "not a file",
    }.items():
        with pytest.raises(InputError, match=words) as caught, VideoReader(tmp_path / name) as reader:
            list(reader)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no video stream"):
        VideoReader(write_tone(tmp_path / "a.wav", 0.2))


def test_too_large_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_frames(1))
    monkeypatch.setattr(video_module, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="too large: 64x48"):
        VideoReader(path)


def test_pcm_becomes_aac_as_long_as_the_picture(tmp_path: Path) -> None:
    tone = write_tone(tmp_path / "tone.wav", 3.0)
    path = write_clip(tmp_path / "a.mp4", moving_frames(50), 25, tone)
    codec, seconds = streams(path)["audio"]
    assert codec == "aac"
    assert seconds == pytest.approx(2.0, abs=0.03)


def test_aac_is_copied_bit_for_bit(tmp_path: Path) -> None:
    first = write_clip(tmp_path / "first.mp4", moving_frames(50), 25, write_tone(tmp_path / "tone.wav", 2.0))
    second = write_clip(tmp_path / "second.mp4", moving_frames(30), 25, first)
    assert streams(second)["audio"][0] == "aac"
    assert 1.1 < streams(second)["audio"][1] <= 1.2

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(second) == packets(first)[: len(packets(second))]
    assert len(packets(second)) > 40


@pytest.mark.parametrize(
    ("name", "codec", "kept_as"),
    [("a.mp3", "libmp3lame", "mp3"), ("a.ogg", "libvorbis", "aac"), ("a.flac", "flac", "aac"), ("a.ts", "aac", "aac")],
)
def test_other_codecs(tmp_path: Path, name: str, codec: str, kept_as: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    rate = 44100 if codec == "flac" else 48000
    if codec == "flac":
        source = tmp_path / name
        with av.open(str(source), "w") as container:
            stream = container.add_stream("flac", rate=rate, layout="stereo")
            tone = (3000 * np.sin(np.arange(rate) * 0.06)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(np.repeat(tone, 2)[None], format="s16", layout="stereo")
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    else:
        source = write_sound(tmp_path / name, codec, 1.0)
    path = write_clip(tmp_path / "out.mp4", moving_frames(20), 25, source)
    found, seconds = streams(path)["audio"]
    assert found.removesuffix("float") == kept_as
    assert seconds == pytest.approx(0.8, abs=0.06)


def test_sound_keeps_its_loudness(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_frames(25), 25, write_tone(tmp_path / "t.wav", 1.0, 16000, 2))
    with av.open(str(path)) as container:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(8000 / 32768 / np.sqrt(2), rel=0.05)


def test_short_sound_and_no_sound(tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mp4", moving_frames(50), 25, write_tone(tmp_path / "t.wav", 0.5))
    assert streams(short)["audio"][1] == pytest.approx(0.5, abs=0.05)
    silent = write_clip(tmp_path / "silent.mp4", moving_frames(2))
    with VideoWriter(tmp_path / "b.mp4", 25, (64, 48), audio_from=silent) as writer:
        assert not writer.has_audio
        writer.write(moving_frames(1)[0])
    assert set(streams(tmp_path / "b.mp4")) == {"video"}


def test_unreadable_sound_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "junk.wav").write_bytes(b"RIFFjunkjunk")
    for audio, words in (("junk.wav", "junk.wav"), ("missing.wav", "does not exist")):
        with pytest.raises(InputError, match=words):
            VideoWriter(tmp_path / "a.mp4", 25, (64, 48), audio_from=tmp_path / audio)
    assert [item.name for item in tmp_path.iterdir()] == ["junk.wav"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_no_file(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with VideoWriter(tmp_path / "a.mp4", 25, (64, 48)) as writer:
            writer.write(moving_frames(1)[0])
            assert not (tmp_path / "a.mp4").exists()
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", moving_frames(3))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must be 64x48"), VideoWriter(path, 25, (64, 48)) as writer:
        writer.write(np.zeros((4, 4, 3), np.uint8))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


def test_no_frame_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(LpkernelsError, match="no frame"), VideoWriter(tmp_path / "a.mp4", 25, (64, 48)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_closed_writer_refuses_frames(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 25, (64, 48))
    writer.write(moving_frames(1)[0])
    writer.close()
    writer.close()
    writer.abort()
    assert (tmp_path / "a.mp4").exists()
    with pytest.raises(ValueError, match="closed"):
        writer.write(moving_frames(1)[0])


def test_wrong_arguments(tmp_path: Path) -> None:
    for path, fps, size, words in [
        ("a.avi", 25, (64, 48), r"\.mp4"),
        ("a.mp4", 0, (64, 48), "fps"),
        ("a.mp4", float("nan"), (64, 48), "fps"),
        ("a.mp4", 25, (0, 48), "size"),
        ("no/a.mp4", 25, (64, 48), "does not exist"),
    ]:
        with pytest.raises(InputError, match=words):
            VideoWriter(tmp_path / path, fps, size)
    with pytest.raises(ValueError, match="64x48, got 48x64"), VideoWriter(tmp_path / "a.mp4", 25, (64, 48)) as writer:
        writer.write(np.zeros((64, 48, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # root writes anywhere: let the system call refuse instead

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LpkernelsError, match=r"cannot write to the folder .*locked: Permission denied"):
        VideoWriter(folder / "a.mp4", 25, (64, 48))
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", 25, (64, 48))
    writer.write(moving_frames(1)[0])

    class Full:
        def mux(self, packets: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_container", Full())
    with pytest.raises(LpkernelsError, match="No space left"):
        writer.close()
    assert list(tmp_path.iterdir()) == []
