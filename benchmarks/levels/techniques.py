"""PyTorch's means of speed on the whole frame, one added after the other, each against the one before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks import frame
from benchmarks.context import Context
from benchmarks.levels.frame import subject
from benchmarks.techniques import Techniques
from benchmarks.work import Candidate, Measurement, Provider

HALF = Techniques(precision="half")
BENCHMARKED = Techniques(precision="half", channels_last=True, cudnn_benchmark=True)

# name -> (what is on, the entry it is an addition to)
LADDER: dict[str, tuple[Techniques, str | None]] = {
    "plain fp32": (Techniques(no_grad=False, tf32=False), None),
    "train mode": (Techniques(no_grad=False, tf32=False, eval_mode=False), "plain fp32"),
    "no gradients": (Techniques(tf32=False), "plain fp32"),
    "tf32": (Techniques(), "no gradients"),
    "autocast fp16": (Techniques(precision="amp"), "tf32"),
    "fp16 weights": (HALF, "autocast fp16"),
    "channels last": (Techniques(precision="half", channels_last=True), "fp16 weights"),
    "cudnn benchmark": (BENCHMARKED, "channels last"),
    "memory clean-up": (
        Techniques(precision="half", channels_last=True, cudnn_benchmark=True, empty_cache=True),
        "cudnn benchmark",
    ),
    "cuda graph": (
        Techniques(precision="half", channels_last=True, cudnn_benchmark=True, cuda_graph=True),
        "cudnn benchmark",
    ),
    "torch.compile": (Techniques(precision="half", compile="reduce-overhead"), "fp16 weights"),
}
CPU_LADDER: dict[str, tuple[Techniques, str | None]] = {
    "plain fp32": LADDER["plain fp32"],
    "train mode": LADDER["train mode"],
    "no gradients": LADDER["no gradients"],
    "channels last": (Techniques(tf32=False, channels_last=True), "no gradients"),
    "cuda graph": LADDER["cuda graph"],
    "torch.compile": LADDER["torch.compile"],
}
YARDSTICKS = ("autocast fp16", "fp16 weights")


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Measure the ladder on one frame; ``extras['added_to']`` names what an entry is compared with."""
    ladder = LADDER if context.device.type == "cuda" else CPU_LADDER

    def maker(techniques: Techniques, previous: str | None) -> Callable[[], Candidate]:
        def build() -> Candidate:
            candidate = frame.build(context.model, techniques, context.device)
            extras = candidate.extras
            return Candidate(candidate.call, candidate.fell_back, lambda: {**extras(), "added_to": previous})

        return build

    providers = [
        Provider(name, techniques.works_in(context.device), maker(techniques, previous), yardstick=name in YARDSTICKS)
        for name, (techniques, previous) in ladder.items()
    ]
    yield context.harness.measure(subject(context, providers, level="techniques"))
