"""``lpkernels profile``: frame, network and op ranges lie inside each other, with our names."""

from __future__ import annotations

import json
import stat
import sys

import pytest

from benchmarks import timeline
from lpkernels import cli, profiling, trace
from lpkernels.errors import InputError

MODEL = ["--random-weights", "0", "--config", "tiny", "--device", "cpu", "--warm-up", "1", "--frames", "2"]


def test_the_trace_nests_frames_networks_and_ops(tmp_path, capsys):
    path = tmp_path / "new" / "trace.json"
    before = trace.enabled()
    assert cli.main(["profile", *MODEL, "--tool", "torch", "-o", str(path)]) == 0
    assert trace.enabled() == before
    found = profiling.read_ranges(path)
    counts = profiling.nesting(found)
    assert counts["frames"] == 2
    assert counts["networks"] == counts["networks in a frame"] == 2 * 4
    assert counts["ops"] == counts["ops in a network"] > 40
    names = {item.name.split(" ")[0] for item in found}
    assert {"frame", "motion_extractor", "warping_module", "spade_generator", "dense_motion_network"} <= names
    assert any("dense_motion_network.hourglass shape=(1, " in item.name for item in found)
    assert any("warping_module batch=1" in item.name for item in found)
    assert "2 frames" in capsys.readouterr().out
    picture = tmp_path / "pictures" / "timeline.png"
    assert cli.main(["bench", "timeline", str(path), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert max(row for row, _ in timeline.rows(found)) >= 3


def test_the_fused_networks_have_ranges_too(tmp_path):
    path = tmp_path / "trace.json"
    assert cli.main(["profile", *MODEL, "--engine", "fused", "--tool", "torch", "-o", str(path)]) == 0
    found = profiling.read_ranges(path)
    counts = profiling.nesting(found)
    assert counts["networks"] == counts["networks in a frame"] == 2 * 4
    assert counts["ops"] == counts["ops in a network"]
    names = {item.name.split(" ")[0] for item in found}
    assert {"frame", "warping_module", "conv_act", "spade_conv", "keypoint_transform"} <= names


def test_kernels_of_a_cuda_trace_are_read_and_drawn(tmp_path):
    events = [
        {"ph": "X", "cat": "user_annotation", "name": "lpkernels::frame::frame", "ts": 0, "dur": 90, "tid": 1},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "lpkernels::frame::frame", "ts": 5, "dur": 99, "tid": 7},
        {"ph": "X", "cat": "kernel", "name": "conv", "ts": 50, "dur": 60, "tid": 7},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    assert [item.name for item in profiling.read_ranges(path)] == ["frame"]
    assert [(item.start, item.end) for item in profiling.read_kernels(path)] == [(50, 110)]
    assert timeline.draw(path, tmp_path / "timeline.png").exists()
    path.write_text(json.dumps({"traceEvents": events[2:]}))
    with pytest.raises(InputError, match="no frame range"):
        timeline.draw(path, tmp_path / "timeline.png")


def test_the_hooks_are_gone_afterwards_even_after_an_error():
    import torch

    model = torch.nn.ModuleDict({"network": torch.nn.Sequential(torch.nn.Linear(2, 2))})
    with profiling.annotated(model, depth=2), pytest.raises(RuntimeError):
        model["network"](torch.ones(3))
    assert not model["network"][0]._forward_pre_hooks
    assert not model["network"][0]._forward_hooks


def test_tool_none_only_runs(capsys):
    assert cli.main(["profile", *MODEL, "--tool", "none"]) == 0
    assert capsys.readouterr().out == ""


def _fake_nsys(folder, monkeypatch, code):
    program = folder / "nsys"
    program.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\n"
        f"pathlib.Path({str(folder / 'arguments')!r}).write_text('\\n'.join(sys.argv))\nsys.exit({code})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_nsys_runs_this_command_again(tmp_path, monkeypatch, capsys):
    _fake_nsys(tmp_path, monkeypatch, 0)
    assert cli.main(["profile", *MODEL, "--engine", "published", "-o", str(tmp_path / "out.nsys-rep")]) == 0
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[1] == "profile"
    assert arguments[arguments.index("--tool") + 1] == "none"
    assert arguments[arguments.index("--random-weights") + 1] == "0"
    assert arguments[arguments.index("--engine") + 1] == "published"
    assert f"--output={tmp_path / 'out.nsys-rep'}" in arguments


def test_a_failing_nsys_is_one_line(tmp_path, monkeypatch, capsys):
    _fake_nsys(tmp_path, monkeypatch, 3)
    assert cli.main(["profile", *MODEL]) == 1
    assert "exit code 3" in capsys.readouterr().err


def test_a_missing_nsys_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["profile", *MODEL, "--tool", "nsys"]) == 2
    assert "not on the PATH" in capsys.readouterr().err


def test_a_trace_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["profile", *MODEL, "--tool", "torch", "-o", str(tmp_path / "file" / "trace.json")]) == 2
    assert "cannot write the trace" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{}", "[1]"])
def test_other_files_are_no_trace(tmp_path, text):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a torch"):
        profiling.read_ranges(path)


def test_frames_must_be_positive(capsys):
    assert cli.main(["profile", *MODEL, "--frames", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
