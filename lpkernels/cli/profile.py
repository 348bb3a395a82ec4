"""``lpkernels profile``: a few frames with named ranges, under Nsight Systems or torch.profiler."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernels.cli.options import add_model_options, load_model
from lpkernels.errors import InputError, LpkernelsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lpkernels.models.portrait_model import PortraitModel

_EPILOG = """\
tools:
  torch   a trace for Perfetto (https://ui.perfetto.dev), with torch.profiler
  nsys    a report for Nsight Systems; nsys must be on the PATH
  none    only run the frames, ranges on: for a profiler that starts this command itself
  auto    nsys if it is there, else torch

examples:
  lpkernels profile --random-weights 0
  lpkernels profile --weights pretrained_weights --tool torch -o trace.json --depth 4
  lpkernels profile --random-weights 0 --engine published
"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("profile", help="a timeline of a few frames, with named ranges", epilog=_EPILOG)
    add_model_options(parser)
    parser.add_argument("--tool", choices=("auto", "torch", "nsys", "none"), default="auto", help="default: auto")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: lpkernels-trace.json or .nsys-rep")
    parser.add_argument("--frames", type=_count, default=3, metavar="N", help="frames to record (default: 3)")
    parser.add_argument("--warm-up", type=_count, default=5, metavar="N", help="frames before them (default: 5)")
    parser.add_argument("--depth", type=_count, default=3, metavar="N", help="how deep modules get ranges (default: 3)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Profile with the tool that ``args`` names."""
    tool = args.tool
    if tool == "auto":
        tool = "nsys" if shutil.which("nsys") else "torch"
    if tool == "nsys":
        return _nsys(args)

    from lpkernels import profiling

    model = load_model(args)
    step = _step(model)
    for _ in range(args.warm_up):
        step()
    with profiling.annotated(model, args.depth):
        if tool == "none":
            with profiling.ranges():
                for _ in range(args.frames):
                    step()
            return 0
        path = args.output or Path("lpkernels-trace.json")
        profiling.torch_trace(step, args.frames, path, model.device)
    counts = profiling.nesting(profiling.read_ranges(path))
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    print(f"{path}: open it at https://ui.perfetto.dev")
    return 0


def _step(model: PortraitModel[Any]) -> Callable[[], object]:
    """Animate the next frame of the drawn clip with the drawn portrait, from and to the model's device."""
    import itertools

    import torch

    from lpkernels.animate.animator import Animator
    from lpkernels.animate.portrait import draw_portrait, driving_frames

    size = model.config.image_size
    animator = Animator(model, draw_portrait(size), graph=False)  # a graph's replay has no ranges inside
    frames = itertools.cycle([torch.from_numpy(frame).to(model.device) for frame in driving_frames(8, size)])
    return lambda: animator.step(next(frames))


def _nsys(args: argparse.Namespace) -> int:
    program = shutil.which("nsys")
    if program is None:
        raise InputError("--tool nsys: nsys is not on the PATH; install Nsight Systems, or use --tool torch")
    output = args.output or Path("lpkernels.nsys-rep")
    command = [
        program,
        "profile",
        "--trace=cuda,nvtx,cudnn,cublas",
        "--cuda-graph-trace=node",
        "--force-overwrite=true",
    ]
    command += [
        f"--output={output}",
        sys.executable,
        "-m",
        "lpkernels",
        "profile",
        "--tool",
        "none",
        *_model_options(args),
    ]
    if (code := subprocess.run(command, check=False).returncode) != 0:
        raise LpkernelsError(f"nsys ended with exit code {code}; --tool torch needs no nsys")
    print(f"{output}: open it in Nsight Systems (nsys-ui)")
    return 0


def _model_options(args: argparse.Namespace) -> list[str]:
    """The options of this run again, for the process under the profiler."""
    of_model = ("weights", "random_weights", "config", "variant", "device", "engine", "precision")
    names = (*of_model, "frames", "warm_up", "depth")
    given = [(name, getattr(args, name)) for name in names if getattr(args, name) is not None]
    return [text for name, value in given for text in (f"--{name.replace('_', '-')}", str(value))]


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value
