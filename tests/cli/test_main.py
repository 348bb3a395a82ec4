"""The command line as a whole: exit codes, one-line errors, help, and the ways a program can be stopped."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

import lpkernels
from lpkernels import cli
from lpkernels.errors import InputError, LpkernelsError


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which cannot be raised at will."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Replace `doctor` by a command that raises what it is given."""

    def install(error: BaseException) -> None:
        def run(args: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr("lpkernels.cli.doctor.run", run)

    return install


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("source x.png: no such file"), 2, "source x.png: no such file"),
        (LpkernelsError("the disk is full"), 1, "the disk is full"),
        (LpkernelsError("two\n  lines"), 1, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("stopped at frame 3; nothing was kept"), 130, "stopped at frame 3; nothing was kept"),
        (PermissionError(13, "Permission denied", "out.mp4"), 1, "out.mp4: Permission denied"),
        (ZeroDivisionError("division by zero\nsecond line"), 1, "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(failing, capsys, error, code, line):
    failing(error)
    assert cli.main(["doctor"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"lpkernels: {line}")
    assert err.count("\n") == 1


def test_gpu_out_of_memory_says_what_helps(failing, capsys):
    failing(OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"))
    assert cli.main(["doctor"]) == 1
    assert "--precision fp16" in capsys.readouterr().err


def test_debug_adds_the_traceback(failing, capsys, monkeypatch):
    monkeypatch.setenv("LPKERNELS_DEBUG", "1")
    failing(ZeroDivisionError("x"))
    assert cli.main(["doctor"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "COMMAND"),
        (["animat"], "invalid choice: 'animat'"),
        (["doctor", "--jso"], "--jso"),
        (["animate", "-s", "a.png"], "-d/--driving"),
        (["demo", "--frames", "0"], "from 1 to 10000, got '0'"),
        (["demo", "--random-weights", "-1"], "--random-weights"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys, argv, expected):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert "--help" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [[], *([name] for name in cli._COMMANDS)])
def test_help_has_examples(capsys, command):
    assert cli.main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:\n  " in out
    assert f"lpkernels {' '.join(command)}".rstrip() in out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lpkernels {lpkernels.__version__}\n"


def test_help_does_not_wait_for_torch():
    program = "import sys; from lpkernels.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_module_runs_as_a_program_and_survives_a_closed_pipe():
    """`python -m lpkernels doctor --json | head -0`: no traceback, no "Exception ignored"."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lpkernels", "doctor", "--json"]
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == ""
