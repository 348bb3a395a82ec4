"""The providers of a network: PyTorch's, from the plainest to the fastest, and lpkernels' own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks import own
from benchmarks.techniques import Techniques, prepare
from benchmarks.work import Candidate, Provider

BASELINES: dict[str, Techniques] = {
    "baseline-fp32": Techniques(),
    "baseline-amp": Techniques(precision="amp"),
    "baseline-half": Techniques(precision="half"),
    "baseline-half-channels-last": Techniques(precision="half", channels_last=True, cudnn_benchmark=True),
    "baseline-bf16": Techniques(precision="bf16"),
    "graph-amp": Techniques(precision="amp", cudnn_benchmark=True, cuda_graph=True),
    "graph-half-channels-last": Techniques(precision="half", channels_last=True, cudnn_benchmark=True, cuda_graph=True),
    "compile-reduce-overhead": Techniques(precision="half", compile="reduce-overhead"),
    "compile-max-autotune": Techniques(precision="half", compile="max-autotune"),
}
# PyTorch's own reduced precision, as most would write it: its error sets the tolerance of the others.
YARDSTICKS = ("baseline-amp", "baseline-half", "baseline-bf16")
# The same with other kernels: cuDNN's benchmarking may pick ones that err more from run to run.
EAGER = ("baseline-half-channels-last", "graph-amp", "graph-half-channels-last")


def of_network(module: nn.Module, device: torch.device) -> list[Provider]:
    """Every provider of one network whose FP32 baseline is ``module``."""

    def baseline(techniques: Techniques) -> Callable[[], Candidate]:
        return lambda: prepare(module, techniques, device)

    def fused(form: own.Form) -> Callable[[], Candidate]:
        return lambda: own.of_network(module, form, device)

    return [
        *(baseline_provider(name, device, baseline(techniques)) for name, techniques in BASELINES.items()),
        *(
            Provider(name, own.works_in(module, form, device), fused(form))
            for name, form in own.FORMS.items()
            if own.has_form(module, form)
        ),
    ]


def baseline_provider(name: str, device: torch.device, build: Callable[[], Candidate]) -> Provider:
    """The provider of a baseline by its name in ``BASELINES``."""
    precision = BASELINES[name].works_in(device)
    return Provider(name, precision, build, yardstick=name in YARDSTICKS, eager_pytorch=name in EAGER)
