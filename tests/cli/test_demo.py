"""`lpkernels demo`: files, table and texts, with random and with saved weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lpkernels
from lpkernels import cli
from lpkernels.animate.image import load_image
from lpkernels.animate.video import VideoReader
from lpkernels.cli import demo
from lpkernels.trace import Row

FILES = {"source.png", "driving.mp4", "animated.mp4", "side_by_side.mp4"}
NETWORKS = ("appearance_feature_extractor", "motion_extractor", "warping_module", "spade_generator")


def run(*argv: str | Path) -> int:
    return cli.main(["demo", *(str(argument) for argument in argv)])


def test_random_weights(tmp_path, capsys):
    out = tmp_path / "new" / "demo"
    assert run("--out", out, "--frames", 4, "--config", "tiny", "--device", "cpu") == 0
    text, bar = capsys.readouterr()
    assert "4/4" in bar
    assert {path.name for path in out.iterdir()} == FILES
    assert all(str(out / name) in text for name in FILES)
    assert all(name in text for name in NETWORKS)
    assert "4 frames in" in text
    assert "noise that moves" in text
    assert "--weights" in text
    size = lpkernels.LivePortraitConfig.tiny().output_size
    with VideoReader(out / "animated.mp4") as animated:
        assert [frame.shape for frame in animated] == [(size, size, 3)] * 4


def test_every_network_is_timed_once_a_frame(tmp_path, capsys):
    assert run("--out", tmp_path, "--frames", 3, "--config", "tiny", "--device", "cpu") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["warping_module"][0] == rows["spade_generator"][0] == "3"
    assert rows["appearance_feature_extractor"][0] == "1"
    assert all(float(value) > 0 for name in NETWORKS for value in rows[name][1:])


@pytest.mark.parametrize("engine", ["fused", "published"])
def test_a_few_frames_are_timed_network_by_network(sample, tmp_path, capsys, engine):
    config = lpkernels.LivePortraitConfig.tiny()
    model = lpkernels.LivePortrait.random(config=config)
    if engine == "fused":
        model = lpkernels.optimize(model, "fp32")
    rows = {row.name: row for row in demo.timed_frames(model, *sample, graphs=False)}
    assert rows["frame"].calls == rows["warping_module"].calls == rows["spade_generator"].calls == 6
    assert rows["appearance_feature_extractor"].calls == 1
    assert "whole frame" in demo.table(list(rows.values()))


def test_the_engine_is_named(tmp_path, capsys):
    arguments = ("--out", tmp_path, "--frames", 2, "--config", "tiny", "--device", "cpu", "--engine", "fused")
    assert run(*arguments) == 0
    assert "fused networks" in capsys.readouterr().out


def test_saved_weights_are_not_called_noise(tmp_path, capsys):
    config = lpkernels.LivePortraitConfig.tiny()
    lpkernels.LivePortrait.random(seed=1, config=config).save_pretrained(tmp_path / "weights")
    assert run("--out", tmp_path / "demo", "--frames", 2, "--weights", tmp_path / "weights", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert "noise" not in text
    assert str(tmp_path / "weights") in text


def test_it_may_be_run_again(tmp_path):
    arguments = ("--out", tmp_path, "--frames", 2, "--config", "tiny", "--device", "cpu")
    assert run(*arguments) == 0
    assert run(*arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_the_drawn_head_moves(sample):
    source, driving = sample
    with VideoReader(driving) as reader:
        frames = np.stack(list(reader)).astype(float)
    assert load_image(source).shape == frames[0].shape
    assert np.abs(frames[1] - frames[0]).mean() > 1


def test_a_wrong_weights_folder_is_said_before_anything_is_drawn(tmp_path, capsys):
    assert run("--out", tmp_path / "demo", "--weights", tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    assert run("--out", tmp_path / "file" / "demo", "--frames", 1, "--config", "tiny", "--device", "cpu") == 1
    assert "the folder cannot be made" in capsys.readouterr().err


def test_table():
    rows = [Row("frame", "frame", [3.0, 5.0]), Row("network", "net", [1.0, 2.0, 9.0]), Row("op", "flow_warp", [1.0])]
    assert [line.split() for line in demo.table(rows).splitlines()[1:]] == [
        ["net", "3", "2.00", "12.0"],
        ["whole", "frame", "2", "4.00", "8.0"],
    ]


@pytest.mark.slow
def test_the_default_demo_finishes_in_time(tmp_path):
    """The small configuration on two cores: well inside three minutes."""
    command = [sys.executable, "-m", "lpkernels", "demo", "--out", tmp_path, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_the_full_model_on_a_gpu(tmp_path, capsys):
    assert run("--out", tmp_path, "--frames", 8) == 0
    text = capsys.readouterr().out
    assert "random weights, full configuration, fused networks" in text
    assert "whole frame, one CUDA graph" in text
    assert all(name in text for name in NETWORKS)
    with VideoReader(tmp_path / "animated.mp4") as animated:
        assert [frame.shape for frame in animated] == [(512, 512, 3)] * 8
