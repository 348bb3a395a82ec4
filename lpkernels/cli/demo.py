"""``lpkernels demo``: draws a portrait and a driving clip, animates, and shows where the time goes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernels.cli.options import add_model_options, choose_device, choose_engine, load_model
from lpkernels.cli.progress import bar
from lpkernels.errors import LpkernelsError

if TYPE_CHECKING:
    import torch

    from lpkernels.models.portrait_model import PortraitModel
    from lpkernels.trace import Row

SHOWN = 12  # frames whose networks are timed on a GPU

_EPILOG = """\
examples:
  lpkernels demo
  lpkernels demo --weights pretrained_weights
  lpkernels demo --out /tmp/demo --frames 25 --device cpu
  lpkernels demo --engine published
"""
_NOISE = """\
These weights are random: the picture is noise that moves. It shows that every part works, not what the model can do.
The real one: lpkernels demo --weights DIR, with LivePortrait's weights (Hugging Face: KwaiVGI/LivePortrait)."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    text = "Draw a portrait and a driving clip, animate, and print the time of each network."
    parser = subparsers.add_parser("demo", help=text, description=text, epilog=_EPILOG)
    parser.set_defaults(run=run)
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where to write (default: demo)")
    parser.add_argument("--frames", type=_frame_count, default=48, metavar="N", help="length of the clip (default: 48)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo; files of an earlier one are replaced."""
    device = choose_device(args.device)
    random = args.weights is None
    if random:
        args.random_weights = args.random_weights or 0
        args.config = args.config or ("full" if device.type == "cuda" else "small")
    model = load_model(args)

    from lpkernels import trace
    from lpkernels.animate.pipeline import animate_file
    from lpkernels.animate.portrait import write_sample

    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LpkernelsError(f"--out {args.out}: the folder cannot be made: {error.strerror}") from None
    source, driving = write_sample(args.out, frames=args.frames)
    output, preview = args.out / "animated.mp4", args.out / "side_by_side.mp4"
    on_gpu = model.device.type == "cuda"
    with bar("demo") as progress, contextlib.ExitStack() as stack:
        recorder = None if on_gpu else stack.enter_context(trace.record(model.device))
        result = animate_file(model, source, driving, output, side_by_side=preview, progress=progress)

    weights = f"random weights, {args.config} configuration" if random else str(args.weights)
    engine = f"{choose_engine(args.engine, device)} networks"
    print(f"\n{result.frames} frames in {result.seconds:.1f} s on {device_name(model.device)} ({weights}, {engine})\n")
    if recorder is None:
        print("A frame of the clip was one CUDA graph. Its networks kernel by kernel, each waited for:\n")
    print(table(recorder.rows() if recorder is not None else timed_frames(model, source, driving)))
    print(f"\nsource        {source}\ndriving       {driving}\nanimated      {output}\nside by side  {preview}")
    if random:
        print(f"\n{_NOISE}")
    return 0


def timed_frames(model: PortraitModel[Any], source: Path, driving: Path, graphs: bool = True) -> list[Row]:
    """A few frames with a range for each network; ``graphs``: then the same frames as CUDA graphs, in one row."""
    from itertools import islice

    import torch

    from lpkernels import trace
    from lpkernels.animate.animator import Animator
    from lpkernels.animate.video import VideoReader

    with VideoReader(driving) as reader:
        frames = [torch.from_numpy(frame).to(model.device) for frame in islice(reader, SHOWN)]

    def play(animator: Animator) -> None:
        for frame in frames:
            animator.step(frame)

    with trace.record(model.device) as recorder:
        play(Animator(model, source, graph=False))
    rows = recorder.rows()
    if graphs:
        animator = Animator(model, source)
        play(animator)  # the first frame is recorded
        with trace.record(model.device) as recorder:
            play(animator)
        rows += [trace.Row(row.category, "whole frame, one CUDA graph", row.times_ms) for row in recorder.rows()]
    return rows


def table(rows: Sequence[Row]) -> str:
    """The times of networks and frames as text, networks first."""
    lines = [f"{'':<32}{'calls':>7}{'median ms':>12}{'total ms':>12}"]
    for category in ("network", "frame"):
        for row in rows:
            if row.category == category:
                name = "whole frame" if row.name == "frame" else row.name
                lines.append(f"{name:<32}{row.calls:>7}{row.median_ms:>12.2f}{row.total_ms:>12.1f}")
    return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """The GPU's name, or "the CPU"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _frame_count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 10000, got {text!r}")
    return value
