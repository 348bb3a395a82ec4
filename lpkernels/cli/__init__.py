"""The command line: ``lpkernels animate | live | demo | doctor | bench | profile``.

A command is a module here with ``add_parser(subparsers)``, which sets ``run`` as the parser's default, and
``run(args) -> exit code``. Modules import torch and the engine inside ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from lpkernels import __version__
from lpkernels.errors import InputError, LpkernelsError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_COMMANDS = ("animate", "live", "demo", "doctor", "bench", "profile")
_EPILOG = """\
examples:
  lpkernels demo
  lpkernels animate -s portrait.jpg -d clip.mp4 -o out.mp4 --weights pretrained_weights
  lpkernels doctor

exit codes: 0 done, 1 failed, 2 wrong argument or input, 130 interrupted; LPKERNELS_DEBUG=1 prints tracebacks
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps the line breaks of its texts and says what is wrong in one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command registered."""
    parser = Parser(prog="lpkernels", description="LivePortrait, fast on NVIDIA GPUs.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"lpkernels {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for name in _COMMANDS:
        importlib.import_module(f"lpkernels.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr, never a traceback.

    ``argv`` defaults to the process's arguments.
    """
    try:
        args = build_parser().parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: --help, --version, a wrong argument
        return stop.code if isinstance(stop.code, int) else OK
    except BrokenPipeError:  # the reader of our output left (`| head`): stop in silence, at interpreter exit too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt as error:
        return _fail(error, str(error) or "interrupted", INTERRUPTED)
    except InputError as error:
        return _fail(error, str(error), USAGE)
    except LpkernelsError as error:
        return _fail(error, str(error), FAILED)
    except Exception as error:
        return _fail(error, _unexpected(error), FAILED)


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("LPKERNELS_DEBUG") == "1":
        traceback.print_exception(error)
    print("lpkernels: " + " ".join(message.split()), file=sys.stderr)
    return code


def _unexpected(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU has too little free memory: close other programs on it, or use --precision fp16 or --device cpu"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    first_line = (str(error).splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first_line} (LPKERNELS_DEBUG=1 prints the traceback)"
