"""``lpkernels doctor``: what is installed, which backend each op will use and why, and what is missing."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from lpkernels.cli.environment import PACKAGES, collect

WIDTH = 110
_EPILOG = """\
examples:
  lpkernels doctor
  lpkernels doctor --json > report.json
  LPKERNELS_BACKEND=ref lpkernels doctor

exit codes: 0 ready (perhaps with advice), 1 a required package is missing
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    text = "Show versions, GPUs, compilers, the backend of each op and why, and what is missing."
    parser = subparsers.add_parser("doctor", help=text, description=text, epilog=_EPILOG)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else "\n".join(report(facts)))
    required = (name for name in PACKAGES if name != "triton")
    return 1 if any(facts["packages"][name] is None for name in required) else 0


def report(facts: dict[str, Any]) -> Iterator[str]:
    """The facts of ``environment.collect`` as lines of text."""
    yield from _rows("versions", {"lpkernels": facts["lpkernels"], "python": facts["python"], **facts["packages"]})
    yield from _rows("tools", facts["tools"])
    if "cuda" in facts:
        yield from _gpu_lines(facts)
        yield from _library_lines(facts["library"])
        yield from _op_lines(facts["ops"])
    yield "advice" if facts["advice"] else "nothing is missing"
    for item in facts["advice"]:
        yield f"  {item['missing']}"
        yield f"    -> {item['mend']}"


def _rows(title: str, rows: dict[str, Any]) -> Iterator[str]:
    yield title
    for name, value in rows.items():
        yield f"  {name:<18} {'-' if value is None else value}"
    yield ""


def _gpu_lines(facts: dict[str, Any]) -> Iterator[str]:
    cuda = facts["cuda"]
    yield from _rows("CUDA", {"driver": facts["driver"], "torch's CUDA": cuda["torch"], "cuDNN": cuda["cudnn"]})
    yield "GPUs"
    for index, gpu in enumerate(facts["gpus"]):
        size = f"{gpu['memory_gib']} GiB, {gpu['multiprocessors']} multiprocessors"
        yield f"  cuda:{index} {gpu['name']}, compute capability {gpu['capability']}, {size}"
    if not facts["gpus"]:
        yield "  none that torch can use: everything runs on the CPU"
    yield ""


def _library_lines(library: dict[str, Any]) -> Iterator[str]:
    build = {name: value or "none" for name, value in library["build"].items()}
    yield from _rows("op library", {"loaded": library["path"] or f"no: {library['error']}", **build})
    yield from _kernel_lines(library["kernels"])


def _kernel_lines(kernels: list[dict[str, Any]]) -> Iterator[str]:
    """A table of the kernels that run here, and the names of the others by the reason."""
    run = [kernel for kernel in kernels if kernel["error"] is None]
    if run:
        width = max(len(kernel["name"]) for kernel in run) + 2
        heading = f"{'threads':>9}{'registers':>11}{'shared B':>10}{'spilled B':>11}{'blocks/SM':>11}"
        yield f"  {'kernel':<{width}}{heading}"
        for kernel in run:
            shared = kernel["static_shared_bytes"] + kernel["dynamic_shared_bytes"]
            yield (
                f"  {kernel['name']:<{width}}{kernel['threads']:>9}{kernel['registers']:>11}{shared:>10}"
                f"{kernel['local_bytes']:>11}{kernel['blocks_per_multiprocessor']:>11}"
            )
    for error in dict.fromkeys(kernel["error"] for kernel in kernels if kernel["error"] is not None):
        names = "; ".join(kernel["name"] for kernel in kernels if kernel["error"] == error)
        yield from _wrapped(f"not here ({error}): {names}")
    if kernels:
        yield ""


def _op_lines(ops: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """Ops by device; those with the same backend for the same reasons are listed together."""
    for device in dict.fromkeys(device for by_device in ops.values() for device in by_device):
        alike: dict[tuple[str | None, tuple[tuple[str, str], ...]], list[str]] = {}
        for name, by_device in ops.items():
            choice = by_device[device]
            alike.setdefault((choice["backend"], tuple(choice["passed"].items())), []).append(name)
        yield f"ops on {device}"
        for (backend, passed), names in sorted(alike.items(), key=lambda item: (item[0][0] or "", item[1])):
            yield from _wrapped(f"{backend or 'cannot run':<7} {', '.join(names)}")
            for other, reason in passed:
                yield f"{'':<10}not {other}: {reason}"
        yield ""


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 10)
