"""What several commands share: the options that choose weights and device, their parsing, and the model they name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lpkernels.errors import InputError

if TYPE_CHECKING:
    import torch

    from lpkernels.models.portrait_model import PortraitModel

CONFIGS = ("full", "small", "tiny")
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
ENGINES = ("fused", "published")
NO_WEIGHTS = (
    "no weights: pass --weights DIR with LivePortrait's pretrained weights (Hugging Face: KwaiVGI/LivePortrait, or the "
    "README of that project), or --random-weights 0 to try the program out without them"
)
AUTO = "auto"
"""The box around the largest face."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose weights, device, networks and precision; ``load_model`` reads them."""
    group = parser.add_argument_group("model")
    weights = group.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        metavar="DIR|REPO",
        help="folder with LivePortrait's weights, or a Hugging Face repo such as KwaiVGI/LivePortrait",
    )
    weights.add_argument(
        "--random-weights",
        type=seed,
        metavar="SEED",
        help="untrained weights: the pictures are noise that moves, the work is that of the real ones",
    )
    group.add_argument("--config", choices=CONFIGS, help="size of a model with random weights (default: full)")
    group.add_argument("--variant", choices=("humans", "animals"), default="humans", help="which of the trained models")
    group.add_argument("--device", metavar="cpu|cuda|cuda:N", help="default: cuda if there is a GPU, else cpu")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        help="fused: the networks rebuilt for speed, folded weights and fused kernels; published: the original's, in "
        "PyTorch (default: fused on a GPU, published on the CPU)",
    )
    group.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        help="default: fp16 on a GPU, fp32 on the CPU, where the others are slow",
    )


def choose_device(name: str | None) -> torch.device:
    """The device ``name`` stands for (the model checks that it is there); None picks the GPU if there is one."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"--device: expected cpu, cuda or cuda:N, got {name!r}")
    return torch.device(name)


def choose_precision(precision: str | None, device: torch.device) -> str:
    """--precision on ``device``."""
    return precision or ("fp16" if device.type == "cuda" else "fp32")


def choose_engine(engine: str | None, device: torch.device) -> str:
    """--engine on ``device``."""
    return engine or ("fused" if device.type == "cuda" else "published")


def load_model(args: argparse.Namespace) -> PortraitModel[Any]:
    """The model that the options of ``add_model_options`` describe.

    Raises InputError if neither weights nor random weights were asked for, or if what was asked for is not there.
    """
    if args.weights is None and args.random_weights is None:
        raise InputError(NO_WEIGHTS)
    if args.weights is not None and args.config is not None:
        raise InputError("--config: only with --random-weights; the size of trained weights comes with them")
    import torch

    from lpkernels.models.config import LivePortraitConfig
    from lpkernels.models.live_portrait import LivePortrait

    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision])
    if args.weights is not None:
        model = LivePortrait.from_pretrained(args.weights, device=device, dtype=dtype, variant=args.variant)
    else:
        config = LivePortraitConfig.named(args.config or "full")
        model = LivePortrait.random(seed=args.random_weights, config=config, device=device, dtype=dtype)
    if choose_engine(args.engine, device) == "published":
        return model

    from lpkernels.fused.convert import optimize

    return optimize(model, precision)


def seed(text: str) -> int:
    """A seed torch accepts as well as any other: 0 to 2^32 - 1."""
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}, got {text!r}")
    return value


def numbers(count: int, of: type[int] | type[float], names: str) -> Callable[[str], tuple]:
    """An argparse type for ``count`` numbers separated by commas, such as a box x,y,w,h."""

    def parse(text: str) -> tuple:
        try:
            values = tuple(of(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"expected {names}, got {text!r}")
        return values

    return parse


def face_box(text: str) -> tuple[int, int, int, int] | str:
    """An argparse type: a box x,y,w,h, or "auto"."""
    if text == AUTO:
        return text
    x, y, width, height = numbers(4, int, f"x,y,w,h in whole pixels, or {AUTO}")(text)
    return x, y, width, height
