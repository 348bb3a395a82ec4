"""What runs in place of an original network's ``forward``: the fused network behind the original's arguments.

The edges are the original's: under autocast its answers have autocast's dtype (the deformation float32), else that of
its parameters; every answer is a new contiguous tensor. Inside, autocast is off and nothing has a gradient.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels import trace
from lpkernels.errors import InputError, LpkernelsError
from lpkernels.fused import _finite
from lpkernels.fused.appearance_feature_extractor import FusedAppearanceFeatureExtractor
from lpkernels.fused.convert import PRECISIONS
from lpkernels.fused.motion_extractor import FusedMotionExtractor
from lpkernels.fused.spade_decoder import FusedSPADEDecoder
from lpkernels.fused.warping_network import FusedWarpingNetwork, WarpSource
from lpkernels.integrations._graphs import Frames, Outputs
from lpkernels.integrations._source_cache import SourceCache


@dataclass(frozen=True)
class Settings:
    """How the fused networks are made and run.

    Attributes:
        precision: a key of ``PRECISIONS``.
        graph: CUDA graphs: True must, False must not, None where they can.
        check_finite: raise at the first layer that gives inf or NaN; no graphs then, which would hide it.
    """

    precision: str = "fp16"
    graph: bool | None = None
    check_finite: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.precision, str) or self.precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.graph is not None and not isinstance(self.graph, bool):
            raise InputError(f"graph must be True, False or None, got {self.graph!r}")
        if not isinstance(self.check_finite, bool):
            raise InputError(f"check_finite must be True or False, got {self.check_finite!r}")
        if self.graph and self.check_finite:
            raise InputError("check_finite sees nothing inside a CUDA graph: leave graph=True out")

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    @property
    def graphs(self) -> bool | None:
        return False if self.check_finite else self.graph


@dataclass(frozen=True)
class Edge:
    """Of a call: the dtype of the original's answers, and whether autocast is what sets it."""

    dtype: torch.dtype
    autocast: bool


class Replacement:
    """A fused network that answers as ``original`` does.

    Attributes:
        name: of the network, for messages and trace ranges.
        device: of the weights.
        outdated: whether the original took over other weights since.
    """

    name: str

    def __init__(self, original: nn.Module, fused: nn.Module, settings: Settings) -> None:
        fused.eval().requires_grad_(False)
        parameter = next(original.parameters())
        self.settings, self.device, self.outdated = settings, parameter.device, False
        self._dtype = parameter.dtype
        self._original = weakref.ref(original)  # it holds this object
        if settings.graph and self.device.type != "cuda":
            raise InputError(f"graph=True needs networks on a CUDA device, {self.name} is on {self.device}")
        if settings.check_finite:
            _finite.watch(fused)

    @property
    def records(self) -> bool:
        """Whether frames run as CUDA graphs."""
        return False

    def serves(self, original: nn.Module, settings: Settings) -> bool:
        """Whether one made now would be the same."""
        device = next(original.parameters()).device
        return not self.outdated and (self.settings, self.device) == (settings, device)

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The original's ``forward``."""

    @contextlib.contextmanager
    def _running(self, argument: str, tensor: Tensor) -> Iterator[Edge]:
        """The modes that the fused network runs in; gives what the original's answers would be made under."""
        if self.outdated:
            raise LpkernelsError(
                f"{self.name} has loaded other weights since it was accelerated: call lpkernels.accelerate again"
            )
        if tensor.device != self.device:
            raise LpkernelsError(
                f"{self.name} was accelerated on {self.device}, and {argument} is on {tensor.device}: move the "
                "original network there and call lpkernels.accelerate again"
            )
        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind)
        edge = Edge(torch.get_autocast_dtype(kind) if autocast else self._own_dtype(), autocast)
        with (
            trace.range(self.name, "network", batch=tensor.shape[0]),
            torch.cuda.device(self.device) if kind == "cuda" else contextlib.nullcontext(),
            torch.no_grad(),
            torch.autocast(kind, enabled=False),
        ):
            yield edge

    def _own_dtype(self) -> torch.dtype:
        """That of the original's parameters, which may have changed since."""
        original = self._original()
        return self._dtype if original is None else next(original.parameters()).dtype


class AppearanceFeatureExtractorReplacement(Replacement):
    """F: runs once per source, so it is never recorded."""

    name = "appearance_feature_extractor"

    def __init__(self, original: nn.Module, baseline: Any, settings: Settings) -> None:
        self._fused = FusedAppearanceFeatureExtractor(baseline, settings.dtype)
        super().__init__(original, self._fused, settings)

    def __call__(self, source_image: Tensor) -> Tensor:
        with self._running("source_image", source_image) as edge:
            return self._fused(source_image).to(edge.dtype)


class MotionExtractorReplacement(Replacement):
    """M."""

    name = "motion_extractor"

    def __init__(self, original: nn.Module, baseline: Any, settings: Settings) -> None:
        self._fused = FusedMotionExtractor(baseline, settings.dtype)
        super().__init__(original, self._fused, settings)
        self._frames = Frames(self._run, self.device, settings.graphs)

    @property
    def records(self) -> bool:
        return self._frames.records

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        with self._running("x", x) as edge:

            def finish(outputs: Outputs, borrowed: bool) -> dict[str, Tensor]:
                heads = self._fused.split(_owned(outputs[0], edge.dtype, borrowed))
                return {name: head.contiguous() for name, head in heads.items()}

            return self._frames([x.detach()], finish)

    def _run(self, image: Tensor) -> Outputs:
        return [self._fused.heads(image.permute(0, 2, 3, 1))]


class WarpingReplacement(Replacement):
    """W: what depends on the source alone is kept (``SourceCache``)."""

    name = "warping_module"

    def __init__(self, original: nn.Module, baseline: Any, settings: Settings) -> None:
        self._fused = FusedWarpingNetwork(baseline, settings.dtype)
        super().__init__(original, self._fused, settings)
        self._sources = SourceCache(self._fused.prepare)
        self._frames = Frames(self._run, self.device, settings.graphs, constant=3)

    @property
    def records(self) -> bool:
        return self._frames.records

    def __call__(self, feature_3d: Tensor, kp_driving: Tensor, kp_source: Tensor) -> dict[str, Tensor | None]:
        positions = kp_driving.dtype
        with self._running("feature_3d", feature_3d) as edge:
            precise = torch.float32 if edge.autocast else torch.promote_types(positions, edge.dtype)

            def finish(outputs: Outputs, borrowed: bool) -> dict[str, Tensor | None]:
                out, deformation, *occlusion_map = outputs
                return {
                    "occlusion_map": _owned(occlusion_map[0][:, None], edge.dtype, borrowed) if occlusion_map else None,
                    "deformation": _owned(deformation, precise, borrowed),
                    "out": _owned(out.permute(0, 3, 1, 2), edge.dtype, borrowed),
                }

            source = self._sources(feature_3d)
            keypoints = [kp.detach().float() for kp in (kp_source, kp_driving)]
            return self._frames([source.volume, source.compressed, source.background, *keypoints], finish)

    def _run(
        self, volume: Tensor, compressed: Tensor, background: Tensor, kp_source: Tensor, kp_driving: Tensor
    ) -> Outputs:
        result = self._fused(WarpSource(volume, compressed, background), kp_source, kp_driving, want_maps=True)
        occlusion_map = [] if result.occlusion_map is None else [result.occlusion_map]
        return [result.out, result.deformation, *occlusion_map]


class SPADEDecoderReplacement(Replacement):
    """G."""

    name = "spade_generator"

    def __init__(self, original: nn.Module, baseline: Any, settings: Settings) -> None:
        self._fused = FusedSPADEDecoder(baseline, settings.dtype)
        super().__init__(original, self._fused, settings)
        self._frames = Frames(self._run, self.device, settings.graphs)

    @property
    def records(self) -> bool:
        return self._frames.records

    def __call__(self, feature: Tensor) -> Tensor:
        with self._running("feature", feature) as edge:
            return self._frames([feature.detach()], lambda outputs, borrowed: _owned(outputs[0], edge.dtype, borrowed))

    def _run(self, feature: Tensor) -> Outputs:
        return [self._fused(feature.permute(0, 2, 3, 1).to(self._fused.dtype).contiguous())]


def _owned(tensor: Tensor, dtype: torch.dtype, copy: bool) -> Tensor:
    """A contiguous tensor of ``dtype``, in memory of its own if ``copy``: one pass at most."""
    return tensor.to(dtype=dtype, memory_format=torch.contiguous_format, copy=copy)
