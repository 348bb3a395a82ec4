"""``lpkernels bench``: the whole way from options to files."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import environment, plots, records, registry
from lpkernels import cli
from tests.benchmarks.fakes import measured
from tests.benchmarks.fakes import records as fake_records


def bench(*arguments):
    return cli.main(["bench", *map(str, arguments)])


def test_measuring_writes_records_figures_and_report(tmp_path, capsys):
    path = tmp_path / "records.json"
    quick = ["--device", "cpu", "--seconds", "0.01", "--providers", "baseline-fp32,lpkernels-fp16", "--json", path]
    quick += ["--subjects", "motion_*,stitching,warping_module,spade_*"]
    assert bench("networks", *quick, "--plot", "--html", "--batch", "1") == 0
    out = capsys.readouterr().out
    assert "networks/motion_extractor" in out
    kept = records.load(path)
    assert kept.runs[0].config == "tiny"
    assert {one.subject for one in kept.measurements} == set(plots.FRAME_NETWORKS)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "figures" / "networks.png").exists()


def test_list_names_levels_ops_and_providers(capsys):
    assert bench("list") == 0
    out = capsys.readouterr().out
    for name in ("flow_warp", "warping_module", "streams", "compile-max-autotune", "lpkernels-fp16"):
        assert name in out


def test_the_command_finds_the_checkout_it_is_called_in():
    """A console script has the folder of its interpreter on its path, not the one it is called in."""
    code = "import sys; sys.path.remove(''); from lpkernels import cli; sys.exit(cli.main(['bench', 'list']))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warping_module" in done.stdout


def test_compare_says_what_changed(tmp_path, capsys):
    for name, time_ms in (("a.json", 2.0), ("b.json", 3.0)):
        records.save(fake_records(measured(median_ms=time_ms)), tmp_path / name)
    assert bench("compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    assert "+50.0%" in capsys.readouterr().out
    assert bench("compare", tmp_path / "a.json", tmp_path / "a.json") == 0
    assert "no change" in capsys.readouterr().out


def test_report_from_a_folder_of_records(tmp_path, capsys):
    records.save(fake_records(measured()), tmp_path / "records.json")
    assert bench("report", tmp_path) == 0
    assert (tmp_path / "report.html").exists()


def test_readme_check_says_whether_it_agrees(tmp_path, monkeypatch, capsys):
    path = tmp_path / "README.md"
    path.write_text("nothing here\n")
    assert bench("readme", path, "--check") == 0
    path.write_text("<!-- bench:begin none/frame -->\n<!-- bench:end none/frame -->\n")
    assert bench("readme", path, "--check") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kernels"], "expected levels"),
        (["compare", "one.json"], "expected two files"),
        (["compare", "absent.json", "absent.json"], "no such records"),
        (["replay"], "expected the folder"),
        (["replay", "absent"], "no recorded op calls"),
        (["report", "absent"], "no such records"),
        (["ops", "--batch", "0"], "at least 1"),
        (["ops", "--seconds", "-1"], "above 0"),
        (["ops", "--device", "tpu"], "--device"),
        (["programs", "--source", "a.png"], "go together"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_without_a_checkout_it_says_where_to_run(monkeypatch, capsys):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench("ops") == 2
    assert "source checkout" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_on_the_cpu_in_two_minutes(tmp_path):
    path = tmp_path / "records.json"
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks", "all", "--device", "cpu", "--json", str(path), "--plot", "--html"]
    subprocess.run(command, check=True, cwd=environment.ROOT)
    assert time.monotonic() - start < 120
    loaded = records.load(path)
    assert loaded.runs[0].config == "tiny"
    levels = {one.level for one in loaded.measurements if one.status == "ok"}
    assert levels == set(registry.LEVELS) - set(registry.ONLY_NAMED)
