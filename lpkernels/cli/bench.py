"""``lpkernels bench``: measure, compare, replay, and write figures, report and README tables.

The benchmarks are in the checkout's ``benchmarks`` folder, not in the installed package.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lpkernels
from lpkernels.cli.options import CONFIGS, choose_device, seed
from lpkernels.errors import InputError

LEVELS = ("ops", "networks", "frame", "techniques", "throughput", "streams", "job", "claim", "warm-up")
SLOW_PROVIDERS = ("compile-max-autotune",)
_EPILOG = """\
what:
  all, or any of: ops networks frame techniques throughput streams job claim warm-up
  programs               not among all: the checkout that LPKERNELS_LIVEPORTRAIT names, accelerated and restored
  endurance              not among all: frames in a row, threads, a live session (--subjects frames,threads,soak)
  list                   what there is to measure
  compare A.json B.json  what changed beyond the spread
  replay DIR             run the op calls that LPKERNELS_CAPTURE=DIR recorded
  timeline TRACE PNG     picture of one frame of a trace that lpkernels profile wrote
  report DIR...          figures and HTML report from records
  readme [--check]       bring README's tables up to date with the records (--check: only say whether they are)

examples:
  lpkernels bench all --plot --html
  lpkernels bench ops --providers 'lpkernels-*,baseline-half'
  lpkernels bench networks --subjects warping_module --providers compile-max-autotune --max-autotune --append
  lpkernels bench throughput --batch 1,4,16 --exclude 'compile-*'
"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser("bench", help="measure speed, with the error beside it", epilog=_EPILOG)
    parser.add_argument("what", nargs="*", default=["all"], metavar="WHAT", help="see below (default: all)")
    parser.add_argument("--providers", type=_names, default=("*",), metavar="GLOB,...", help="measure only these")
    parser.add_argument(
        "--subjects", type=_names, default=("*",), metavar="GLOB,...", help="only these ops and networks"
    )
    parser.add_argument("--exclude", type=_names, default=(), metavar="GLOB,...", help="leave these out")
    parser.add_argument(
        "--max-autotune", action="store_true", help="include compile-max-autotune: minutes of compiling"
    )
    parser.add_argument("--batch", type=_batches, metavar="N,...", help="batches (default: 1; throughput: 1,2,4,8,16)")
    parser.add_argument("--device", metavar="cpu|cuda|cuda:N", help="default: cuda if there is a GPU, else cpu")
    parser.add_argument("--config", choices=CONFIGS, help="size of the model (default: full on a GPU, else tiny)")
    parser.add_argument("--weights", metavar="DIR", help="trained weights; random ones do the same work")
    parser.add_argument("--random-weights", type=seed, default=0, metavar="SEED", help="default: 0")
    parser.add_argument("--seconds", type=_positive, metavar="S", help="timing of each subject (default: 4; CPU: 0.25)")
    parser.add_argument("--budget", type=_positive, metavar="S", help="start nothing new after so many seconds")
    parser.add_argument(
        "--frames",
        type=_count,
        metavar="N",
        help="endurance: in a row (default: 10000; CPU: 8); programs: the clip (80; CPU: 2); job: the clip, in whole "
        "loops (72; CPU: 3)",
    )
    parser.add_argument("--source", type=Path, metavar="FILE", help="programs: a picture, instead of a drawn one")
    parser.add_argument("--driving", type=Path, metavar="FILE", help="programs: a square clip, with --source")
    parser.add_argument(
        "--soak-seconds", type=_positive, metavar="S", help="endurance: of the live session (default: 600; CPU: 3)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="records (default: benchmarks/results/<device>/records.json)"
    )
    parser.add_argument("--append", action="store_true", help="add to the records instead of starting anew")
    parser.add_argument("--plot", action="store_true", help="write figures beside the records")
    parser.add_argument("--html", action="store_true", help="write report.html beside the records, figures inside")
    parser.add_argument("--check", action="store_true", help="with readme: change nothing, exit 1 if out of date")
    parser.add_argument("--all-rows", action="store_true", help="with compare: also what did not change")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what ``args.what`` names."""
    _find_checkout()
    if importlib.util.find_spec("benchmarks") is None or importlib.util.find_spec("benchmarks.session") is None:
        raise InputError(
            "bench: needs the source checkout: run it there, as `lpkernels bench` or `python -m benchmarks`"
        )
    first, rest = args.what[0], args.what[1:]
    action = _ACTIONS.get(first)
    return action(args, rest) if action else _measure(args)


def _find_checkout() -> None:
    """Make the checkout's ``benchmarks`` importable: of the folder one is in, or that lpkernels itself lies in."""
    for folder in (Path.cwd(), Path(lpkernels.__file__).parents[1]):
        if (folder / "benchmarks" / "session.py").is_file() and (folder / "lpkernels").is_dir():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return


def _measure(args: argparse.Namespace) -> int:
    from benchmarks import environment, records, session, tables
    from benchmarks.context import Options

    if (args.source is None) != (args.driving is None):
        raise InputError("--source and --driving go together: a picture and the clip that moves it")
    levels = LEVELS if args.what == ["all"] else tuple(args.what)
    device = choose_device(args.device)
    on_gpu = device.type == "cuda"
    options = Options(
        device=device,
        config=args.config or ("full" if on_gpu else "tiny"),
        weights=args.weights,
        batches=args.batch,
        providers=args.providers,
        subjects=args.subjects,
        exclude=(*args.exclude, *(() if args.max_autotune else SLOW_PROVIDERS)),
        seconds=args.seconds or (4.0 if on_gpu else 0.25),
        budget=args.budget,
        seed=args.random_weights,
        frames=args.frames,
        soak_seconds=args.soak_seconds,
        source=args.source,
        driving=args.driving,
    )
    path = args.json or records.RESULTS / environment.slug(device) / records.FILE_NAME
    with _progress() as progress:
        outcome = session.run(levels, options, path, append=args.append, progress=progress)
    measured = [one for one in outcome.records.measurements if one.run == outcome.run]
    print(tables.timings(outcome.records, measured).terminal())
    if (left_out := tables.skipped(measured)).rows:
        print(f"\n{left_out.terminal()}")
    print(f"\n{path} ({outcome.seconds:.0f} s)")
    for level, reason in outcome.unreached.items():
        print(f"{level}: incomplete, {reason}")
    if args.plot or args.html:
        _figures(path, args.plot, args.html)
    return 0


def _list(args: argparse.Namespace, rest: list[str]) -> int:
    from benchmarks import own, providers, registry

    for level, text in registry.LEVELS.items():
        print(f"{level}: {text}\n  {', '.join(registry.names(level))}")
    print(f"providers: {', '.join([*providers.BASELINES, *own.FORMS])}")
    return 0


def _compare(args: argparse.Namespace, rest: list[str]) -> int:
    from benchmarks import compare, records

    if len(rest) != 2:
        raise InputError(f"bench compare: expected two files of records, got {len(rest)}")
    changes = compare.compare(*(records.load(Path(path)) for path in rest))
    table = compare.table(changes, args.all_rows)
    print(table.terminal() if table.rows else f"no change beyond the spread in {len(changes)} measurements")
    return 0


def _replay(args: argparse.Namespace, rest: list[str]) -> int:
    from benchmarks import replay

    if len(rest) != 1:
        raise InputError(f"bench replay: expected the folder of a capture, got {len(rest)} arguments")
    print(replay.replay(Path(rest[0]), choose_device(args.device), args.seconds or 1.0).terminal())
    return 0


def _report(args: argparse.Namespace, rest: list[str]) -> int:
    from benchmarks import records

    folders = [Path(path) for path in rest] or sorted(
        path.parent for path in records.RESULTS.glob(f"*/{records.FILE_NAME}")
    )
    if not folders:
        raise InputError(f"bench report: no records under {records.RESULTS}; name a folder or measure first")
    for folder in folders:
        _figures(folder / records.FILE_NAME if folder.is_dir() else folder, plot=True, html=True)
    return 0


def _readme(args: argparse.Namespace, rest: list[str]) -> int:
    from benchmarks import readme

    stale = readme.update(Path(rest[0]) if rest else readme.README, write=not args.check)
    for name in stale:
        print(f"{name}: {'differs from the records' if args.check else 'written'}")
    return 1 if stale and args.check else 0


def _timeline(args: argparse.Namespace, rest: list[str]) -> int:
    from benchmarks import timeline

    if len(rest) != 2:
        raise InputError(f"bench timeline: expected a trace and a picture's name, got {len(rest)} arguments")
    print(timeline.draw(Path(rest[0]), Path(rest[1])))
    return 0


_ACTIONS = {
    "list": _list,
    "compare": _compare,
    "replay": _replay,
    "report": _report,
    "readme": _readme,
    "timeline": _timeline,
}


def _figures(path: Path, plot: bool, html: bool) -> None:
    from benchmarks import plots, records, report

    kept = records.load(path)
    folder = path.parent
    figures = plots.draw(kept)
    if plot:
        for file in plots.write(figures, folder / "figures"):
            print(file)
    if html:
        print(report.write(kept, figures, folder / "report.html"))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    from tqdm import tqdm

    with tqdm(bar_format="{elapsed} {desc}", leave=False, dynamic_ncols=True) as bar:
        yield lambda text: bar.set_description_str(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _batches(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers of at least 1, such as 1,2,4; got {text!r}")
    return values


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return value
