"""lpkernels' own networks as providers, as users run them: made by ``lpkernels.fused``, a CUDA graph each on a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import backends
from benchmarks.keypoints import PublishedKeypoints
from benchmarks.techniques import EMULATED, Graphed
from benchmarks.work import Candidate, Unavailable, dtype_of
from lpkernels.models.appearance_feature_extractor import AppearanceFeatureExtractor
from lpkernels.models.stitching_retargeting_network import StitchingRetargetingNetwork
from lpkernels.models.warping_network import WarpingNetwork

Call = Callable[..., Any]


@dataclass(frozen=True)
class Form:
    """One form of the optimized model: its precision, and whether kernels made for Hopper alone may run."""

    precision: str
    hopper: bool = True

    def works_in(self, device: torch.device) -> str:
        """The arithmetic: cuDNN takes TF32 for float32 unless it is told not to."""
        return "tf32" if self.precision == "fp32" and device.type == "cuda" else self.precision

    def require(self, device: torch.device) -> None:
        """Raise Unavailable if ``device`` cannot run this form, or no other than without ``hopper``."""
        if device.type != "cuda" and self.precision != "fp32":
            raise Unavailable(EMULATED)
        if not self.hopper and (reason := backends.same_without_hopper(device)):
            raise Unavailable(reason)

    def setting(self) -> contextlib.AbstractContextManager[None]:
        """What must hold while the form is built and its graphs are recorded."""
        return contextlib.nullcontext() if self.hopper else backends.without_hopper()


FORMS = {
    "lpkernels-fp16": Form("fp16"),
    "lpkernels-bf16": Form("bf16"),
    "lpkernels-fp32": Form("fp32"),
    "lpkernels-fp16-no-hopper": Form("fp16", hopper=False),
}
SINGLE_PRECISION = (StitchingRetargetingNetwork, PublishedKeypoints)  # float32 in every form
NO_HOPPER_KERNELS = (AppearanceFeatureExtractor, *SINGLE_PRECISION)


def has_form(module: nn.Module, form: Form) -> bool:
    """Whether a network's fused form is another one in ``form``."""
    return form.hopper or not isinstance(module, NO_HOPPER_KERNELS)


def works_in(module: nn.Module, form: Form, device: torch.device) -> str:
    """The precision that a network's fused form computes in."""
    return "fp32" if isinstance(module, SINGLE_PRECISION) else form.works_in(device)


class Watched:
    """A call whose first use at a shape, when backends are chosen and graphs recorded, is made under a form's setting.

    Attributes:
        seen: the backends that ran then.
    """

    def __init__(self, call: Call, form: Form, seen: backends.Seen | None = None) -> None:
        self._call, self._form = call, form
        self._met: set[tuple[torch.Size, ...]] = set()
        self.seen: backends.Seen = {} if seen is None else seen

    def __call__(self, *inputs: Tensor) -> Any:
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes in self._met:
            return self._call(*inputs)
        with self._form.setting(), backends.watched(self.seen):
            answer = self._call(*inputs)
        self._met.add(shapes)
        return answer

    def facts(self) -> dict[str, Any]:
        """For the record: op -> backends, milliseconds of a graph's replay right behind another, and a note of both."""
        notes = [] if self._form.hopper else [backends.by_backend(self.seen)]
        facts: dict[str, Any] = {"backends": backends.by_op(self.seen)}
        if isinstance(self._call, Graphed) and (replay := self._call.replay_ms()) is not None:
            facts["replay_ms"] = replay
            notes.append(f"{replay:.3g} ms a replay")
        return {**facts, "note": "; ".join(notes)} if notes else facts


def of_network(module: nn.Module, form: Form, device: torch.device) -> Candidate:
    """The fused form of one network, with its baseline's arguments. Raises Unavailable where it cannot run."""
    from lpkernels.fused.convert import build

    form.require(device)
    with form.setting():
        if isinstance(module, WarpingNetwork):
            warping = Warping(module, form, device)
            return Candidate(warping, extras=warping.facts)
        call = module.fused() if isinstance(module, PublishedKeypoints) else build(module, form.precision)
    watched = Watched(recorded(call, device), form)
    return Candidate(watched, extras=watched.facts)


def recorded(call: Call, device: torch.device) -> Call:
    """One CUDA graph on a GPU."""
    return Graphed(call, device) if device.type == "cuda" else call


class Warping:
    """W as the frame engine runs it: what depends on the source alone is computed when a source tensor is first seen.

    A source has a graph of its own, so no call pays for changing it. Of the baseline's answer it gives ``out``, as in
    a frame, where nobody asks for the deformation.
    """

    def __init__(self, baseline: WarpingNetwork, form: Form, device: torch.device) -> None:
        from lpkernels.fused.warping_network import FusedWarpingNetwork

        self._network = FusedWarpingNetwork(baseline, dtype_of(form.precision))
        self._form, self._device = form, device
        self._sources: dict[int, tuple[Tensor, Watched]] = {}
        self._seen: backends.Seen = {}
        self._prepare_ms = float("inf")

    def __call__(self, feature_3d: Tensor, kp_driving: Tensor, kp_source: Tensor) -> dict[str, Tensor]:
        known = self._sources.get(id(feature_3d))
        if known is None or known[0] is not feature_3d:
            known = self._sources[id(feature_3d)] = feature_3d, self._prepared(feature_3d)
        return {"out": known[1](kp_driving, kp_source)}

    def _prepared(self, feature_3d: Tensor) -> Watched:
        start = self._now()
        with self._form.setting():
            source = self._network.prepare(feature_3d)
        self._prepare_ms = min(self._prepare_ms, (self._now() - start) * 1e3)

        def warp(kp_driving: Tensor, kp_source: Tensor) -> Tensor:
            return self._network(source, kp_source, kp_driving).permute(0, 3, 1, 2)

        return Watched(recorded(warp, self._device), self._form, self._seen)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def facts(self) -> dict[str, Any]:
        """For the record: backends, and what was left out of the time."""
        sources = [source for _, source in self._sources.values()]
        ran = (sources or [Watched(self, self._form, self._seen)])[0].facts()
        untimed = f"per source, not timed: {self._prepare_ms:.3g} ms"
        note = "; ".join(filter(None, [untimed, ran.get("note")]))
        return {**ran, "compared": "out", "prepare_ms": self._prepare_ms, "note": note}
