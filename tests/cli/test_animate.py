"""`lpkernels animate` from the arguments to the files, and its answer to everything that can be wrong with them."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import lpkernels
from lpkernels import cli
from lpkernels.animate import retarget
from lpkernels.animate.image import load_image, save_image
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.video import VideoReader
from lpkernels.cli import animate
from tests.animate.clips import write_clip

MODEL = ("--random-weights", "0", "--config", "tiny", "--device", "cpu")


@pytest.fixture
def command(sample, tmp_path):
    """Run `lpkernels animate` with the sample, unless other files are given."""

    def run(*argv: str | Path, source: Path = sample[0], driving: Path = sample[1], model=MODEL) -> int:
        output = ("-o", tmp_path / "out.mp4") if "-o" not in argv else ()
        arguments = ("animate", "-s", source, "-d", driving, *output, *model, *argv)
        return cli.main([str(argument) for argument in arguments])

    return run


def frames(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        return list(reader)


def refused(capsys, code: int, expected: int, *words: str) -> None:
    out, err = capsys.readouterr()
    assert code == expected, err
    assert out == ""
    assert err.startswith("lpkernels"), err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_a_clip_gives_a_clip_as_long(command, sample, tmp_path, capsys):
    assert command() == 0
    captured = capsys.readouterr()
    assert f"{tmp_path / 'out.mp4'}: 6 frames" in captured.out
    assert "6/6" in captured.err
    written = frames(tmp_path / "out.mp4")
    size = lpkernels.LivePortraitConfig.tiny().output_size
    assert [frame.shape for frame in written] == [(size, size, 3)] * 6
    with VideoReader(sample[1]) as driving, VideoReader(tmp_path / "out.mp4") as animated:
        assert animated.fps == driving.fps
    assert any(not np.array_equal(frame, written[0]) for frame in written[1:]), "nothing moves"


def test_the_fused_engine_gives_the_same_clip(command, tmp_path):
    assert command("-q") == 0
    assert command("-q", "-o", tmp_path / "fused.mp4", "--engine", "fused") == 0
    published, fused = (np.stack(frames(tmp_path / name)).astype(int) for name in ("out.mp4", "fused.mp4"))
    assert np.abs(published - fused).mean() < 0.5  # the encoder makes more of the last bit than the networks do


def test_quiet_leaves_the_bar_out(command, capsys):
    assert command("-q") == 0
    assert capsys.readouterr().err == ""


def test_side_by_side_and_template(command, tmp_path, capsys):
    side, template = tmp_path / "side.mp4", tmp_path / "motion.safetensors"
    assert command("--side-by-side", side, "--save-template", template) == 0
    assert str(side) in capsys.readouterr().out
    assert len(frames(side)) == 6
    assert lpkernels.load_template(template).n_frames == 6
    again = tmp_path / "again.mp4"
    assert command("-o", again, driving=template) == 0
    difference = np.abs(np.stack(frames(again)).astype(int) - np.stack(frames(tmp_path / "out.mp4")))
    assert difference.mean() < 1, "a template drives as the clip does that it was taken from"


def test_a_picture_drives_a_picture_with_absolute_motion(command, sample, tmp_path, capsys):
    still = tmp_path / "out.png"
    refused(capsys, command("-o", still, driving=sample[0].parent / "source.png", source=_copy(sample[0], tmp_path)), 2)
    assert command("-o", still, "--absolute", source=_copy(sample[0], tmp_path), driving=sample[0]) == 0
    assert load_image(still).shape[2] == 3


def _copy(path: Path, folder: Path) -> Path:
    copy = folder / "copy.png"
    copy.write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(
    "argv",
    [
        ("--region", "lip", "--driving-multiplier", "1.5"),
        ("--driving-option", "expression-friendly", "--no-stitching", "--no-audio"),
        ("--smooth", "--crop", "4,4,48,48", "--driving-crop", "0,0,60,60"),
        ("--source-eye-ratio", "0.3,0.3", "--eye-ratio", "0.1", "--source-lip-ratio", "0.1", "--lip-ratio", "0.4"),
        ("--precision", "fp32", "--absolute"),
    ],
)
def test_options_reach_the_engine(command, tmp_path, argv):
    assert command(*argv) == 0
    assert len(frames(tmp_path / "out.mp4")) == 6


def test_paste_back_writes_the_whole_picture(command, sample, tmp_path):
    assert command("-q", "--crop", "8,4,48,48", "--paste-back") == 0
    whole = load_image(sample[0])
    assert [frame.shape for frame in frames(tmp_path / "out.mp4")] == [whole.shape] * 6


@pytest.mark.skipif(find_spec("mtcnn") is None, reason="needs the extra: pip install 'lpkernels[face]'")
def test_faces_are_found(command, tmp_path):
    save_image(tmp_path / "photo.png", np.pad(draw_portrait(160), ((20, 30), (40, 90), (0, 0)), mode="edge"))
    driving = write_clip(tmp_path / "clip.mp4", list(driving_frames(3, 160)))
    argv = ("--crop", "auto", "--driving-crop", "auto", "--paste-back")
    assert command("-q", *argv, source=tmp_path / "photo.png", driving=driving) == 0
    assert [frame.shape for frame in frames(tmp_path / "out.mp4")] == [(210, 290, 3)] * 3


def test_several_boxes_are_pasted_back(command, sample, tmp_path):
    assert command("-q", "--crop", "0,0,32,40", "--crop", "32,10,32,40") == 0
    whole = load_image(sample[0]).astype(int)
    first = frames(tmp_path / "out.mp4")[0]
    assert first.shape == whole.shape
    assert np.abs(first - whole)[8:32, 8:24].mean() > 10
    assert np.abs(first - whole)[18:42, 40:56].mean() > 10


@pytest.mark.parametrize(
    ("argv", "crop"),
    [
        ((), None),
        (("--crop", "auto"), "auto"),
        (("--faces", "largest"), "auto"),
        (("--faces", "all"), "all"),
        (("--faces", "all", "--crop", "auto"), "all"),
        (("--crop", "1,2,3,4"), (1, 2, 3, 4)),
        (("--crop", "1,2,3,4", "--crop", "5,6,7,8"), [(1, 2, 3, 4), (5, 6, 7, 8)]),
    ],
)
def test_what_faces_are_meant(argv, crop):
    assert animate.source_crop(parse(*argv)) == crop


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("--crop", "auto", "--crop", "1,2,3,4"), "--crop auto is the largest face alone"),
        (("--crop", "auto", "--crop", "auto"), "--faces all"),
        (("--crop", "1,2,3,4", "--faces", "all"), "--faces finds the faces itself"),
    ],
)
def test_faces_meant_twice(command, capsys, argv, word):
    refused(capsys, command(*argv), 2, word)


@pytest.mark.parametrize("option", ["--crop", "--driving-crop"])
def test_without_the_extra_face_the_command_is_named(command, capsys, monkeypatch, option):
    monkeypatch.setattr("lpkernels.animate._mtcnn.importlib.util.find_spec", lambda name: None)
    refused(capsys, command(option, "auto", model=()), 2, "pip install 'lpkernels[face]'")


def test_a_box_is_four_numbers_or_auto(command, capsys):
    refused(capsys, command("--crop", "face"), 2, "--crop", "x,y,w,h in whole pixels, or auto")


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    animate.add_parser(parser.add_subparsers())
    return parser.parse_args(["animate", "-s", "a", "-d", "b", "-o", "c", *argv])


def test_defaults_are_the_engines():
    assert animate.motion_options(parse()) == lpkernels.MotionOptions()


def test_options_mean_what_they_say():
    argv = ["--region", "lip", "--driving-multiplier", "2", "--driving-option", "expression-friendly", "--no-stitching"]
    argv += ["--eye-ratio", "0.2", "--source-eye-ratio", "0.3,0.4", "--source-lip-ratio", "0.1"]
    assert animate.motion_options(parse(*argv)) == lpkernels.MotionOptions(
        region="lip",
        driving_multiplier=2.0,
        driving_option="expression-friendly",
        stitching=False,
        eye_retargeting=True,
        lip_retargeting=True,
        source_eye_ratio=(0.3, 0.4),
        source_lip_ratio=0.1,
    )
    assert not animate.motion_options(parse("--absolute")).relative


def test_every_choice_of_the_engine_can_be_asked_for():
    for region in retarget.REGIONS:
        assert parse("--region", region).region == region
    for option in retarget.DRIVING_OPTIONS:
        assert parse("--driving-option", option).driving_option == option


def test_options_that_exclude_each_other(command, capsys):
    refused(capsys, command("--absolute", "--driving-option", "expression-friendly"), 2, "relative")
    refused(capsys, command("--eye-ratio", "0.3"), 2, "source_eye_ratio")


def test_no_weights(command, tmp_path, capsys):
    refused(capsys, command(model=()), 2, "--weights DIR", "--random-weights")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_weights_folder(command, tmp_path, capsys):
    refused(capsys, command(model=("--weights", str(tmp_path))), 2, str(tmp_path), "appearance_feature_extractor")


@pytest.mark.parametrize("option", ["-s", "-d"])
def test_a_path_that_is_not_there(command, capsys, option, sample):
    name = {"-s": "source", "-d": "driving"}[option]
    refused(capsys, command(**{name: Path("nowhere.mp4")}), 2, f"--{name}", "nowhere.mp4", "does not exist")


@pytest.mark.parametrize("content", [b"", b"not a video", bytes(2000)])
def test_a_corrupt_video(command, tmp_path, capsys, content):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    refused(capsys, command("-q", driving=broken), 2, "broken.mp4")
    assert list(tmp_path.iterdir()) == [broken]


def test_a_corrupt_picture(command, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    refused(capsys, command("-q", source=broken), 2, "broken.png")


def test_a_crop_outside_the_picture(command, tmp_path, capsys):
    refused(capsys, command("-q", "--crop", "40,40,64,64"), 2, "40", "64")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_told(command, tmp_path, capsys):
    existing = tmp_path / "out.mp4"
    existing.write_bytes(b"precious")
    refused(capsys, command(), 2, "out.mp4", "--overwrite")
    assert existing.read_bytes() == b"precious"
    assert command("--overwrite") == 0
    assert len(frames(existing)) == 6


def test_an_input_is_never_an_output(command, sample, capsys):
    before = sample[1].read_bytes()
    refused(capsys, command("-o", sample[1], "--overwrite"), 2, "driving.mp4")
    assert sample[1].read_bytes() == before


def test_a_folder_that_does_not_exist(command, tmp_path, capsys):
    refused(capsys, command("-o", tmp_path / "nowhere" / "out.mp4"), 2, "nowhere")


def test_a_folder_that_cannot_be_written_to(command, capsys, monkeypatch):
    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lpkernels.animate._files.os.open", refuse)
    refused(capsys, command(), 1, "Permission denied")


@pytest.mark.parametrize("argv", [("--region", "nose"), ("--crop", "1,2,3"), ("--driving-multiplier", "fast")])
def test_a_malformed_value(command, capsys, argv):
    refused(capsys, command(*argv), 2, argv[0], argv[1])


def test_ctrl_c_leaves_no_half_file(command, tmp_path, capsys, monkeypatch):
    from lpkernels.animate.video import VideoWriter

    write = VideoWriter.write

    def stop_at_the_third(self: VideoWriter, frame: np.ndarray) -> None:
        stop_at_the_third.count += 1
        if stop_at_the_third.count == 3:
            raise KeyboardInterrupt
        write(self, frame)

    stop_at_the_third.count = 0
    monkeypatch.setattr(VideoWriter, "write", stop_at_the_third)
    refused(capsys, command("-q"), 130, "stopped after 2 of 6 frames", "nothing was kept")
    assert list(tmp_path.iterdir()) == []
