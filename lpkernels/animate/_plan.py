"""The arithmetic of one frame on fixed buffers: what is called on the CPU and recorded on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpkernels import ops, trace
from lpkernels.animate._graph import Call
from lpkernels.animate.motion import Motion
from lpkernels.animate.retarget import MotionOptions, _taken_coordinates
from lpkernels.animate.source import Source
from lpkernels.fused.stitching import KeypointPath, SourceKeypoints
from lpkernels.models.portrait_model import PortraitModel
from lpkernels.models.warp_source import SourceTensors


def pack(motion: Motion) -> Tensor:
    """A motion as rows (B, 3K + 13) float32; see ``ops.pack_motion``."""
    return ops.pack_motion(motion.exp, motion.R, motion.t, motion.scale).float()


def make_path(model: PortraitModel[Any], options: MotionOptions) -> KeypointPath:
    """The keypoint path that does what ``retarget.drive`` does under ``options``.

    Raises:
        ValueError: a region that is not defined for the model's keypoints.
    """
    config = model.config
    return KeypointPath(
        model.stitching_retargeting_module,  # type: ignore[arg-type]
        relative=options.relative,
        taken=_taken_coordinates(options.region, options.relative, config.num_kp, model.device),
        pose=options.region in ("all", "pose"),
        scale=options.region == "all",
        driving_multiplier=options.driving_multiplier,
        stitching=options.stitching,
        source_eye_ratio=options.source_eye_ratio if options.eye_retargeting else None,
        source_lip_ratio=options.source_lip_ratio if options.lip_retargeting else None,
        bins=config.motion_extractor.num_bins,
    )


@dataclass(frozen=True, eq=False)
class Buffers:
    """What every frame reads; written in place, so that recorded frames find it.

    Attributes:
        keypoints, warp: the source, for the keypoint path and for the warping module, batch N: its faces.
        first: the first driving frame's packed motion, (1, 3K + 13).
        multiplier: of expression-friendly motion, (N,).
        eye_ratio, lip_ratio: openings wanted, (1,).
    """

    keypoints: SourceKeypoints
    warp: SourceTensors
    first: Tensor
    multiplier: Tensor
    eye_ratio: Tensor
    lip_ratio: Tensor

    @classmethod
    def of(cls, model: PortraitModel[Any], source: Source) -> Buffers:
        """New buffers that hold ``source``; its motion stands in for the first frame's."""
        keypoints, warp = _of_source(model, source)
        own = {name: tensor.clone() for name, tensor in warp.tensors().items()}
        return cls(
            SourceKeypoints(keypoints.kp.clone(), keypoints.x_s.clone(), keypoints.motion.clone()),
            dataclasses.replace(warp, **own),  # type: ignore[type-var]
            first=keypoints.motion[:1].clone(),
            multiplier=torch.ones(source.faces, device=model.device),
            eye_ratio=torch.zeros(1, device=model.device),
            lip_ratio=torch.zeros(1, device=model.device),
        )

    def load(self, model: PortraitModel[Any], source: Source) -> None:
        """Take over another source."""
        keypoints, warp = _of_source(model, source)
        self.warp.copy_(warp)
        for name in ("kp", "x_s", "motion"):
            getattr(self.keypoints, name).copy_(getattr(keypoints, name))


class FramePlan:
    """One frame (or a batch) of one input size: driving pictures, or packed motions, to animated pictures.

    One frame drives all faces of a source at once; a source of one face takes any number.

    ``run`` makes new answers at each call. Recorded, it writes into those of the recording.

    Attributes:
        inputs: uint8 (B, H, W, 3), or packed motions (B, 3K + 13); to be filled before each run.
        bytes: the same memory as uint8.
        heads: M's raw heads (B, 6K + 3 bins + 4), or ``inputs``.
        motion: the driving motion, packed (B, 3K + 13); of N faces N times the one.
        output: uint8 (B, S, S, 3), or (N, S, S, 3) of N faces.
        replay: what stands for ``run`` once that is recorded.
    """

    heads: Tensor
    motion: Tensor
    output: Tensor
    _x_d: Tensor

    def __init__(
        self, model: PortraitModel[Any], path: KeypointPath, options: MotionOptions, buffers: Buffers, inputs: Tensor
    ) -> None:
        self.inputs, self.bytes = inputs, inputs.view(torch.uint8)
        self.replay: Call | None = None
        self._model, self._path, self._options, self._buffers = model, path, options, buffers
        self.of_pictures = inputs.dtype == torch.uint8

    def run(self) -> None:
        """All of it."""
        self.read()
        self.move()
        self.draw()

    def read(self) -> None:
        """M."""
        self.heads = self._model.heads(self.inputs) if self.of_pictures else self.inputs

    def move(self) -> None:
        """The keypoints, and the driving motion; what relative motion counts from is read from the buffers."""
        path: Callable[..., tuple[Tensor, Tensor]] = self._path if self.of_pictures else self._path.from_motion
        faces = self._buffers.keypoints.x_s.shape[0]
        with trace.range("stitching_retargeting_module", "network", batch=self.inputs.shape[0]):
            self._x_d, self.motion = path(
                self.heads if faces == 1 else self.heads.expand(faces, -1),
                self._buffers.keypoints,
                self._buffers.first,
                self._buffers.eye_ratio if self._options.eye_retargeting else None,
                self._buffers.lip_ratio if self._options.lip_retargeting else None,
                self._buffers.multiplier if self._options.expression_friendly else None,
            )

    def draw(self) -> None:
        """W and G."""
        self.output = self._model.render(self._buffers.warp, self._x_d)


def _of_source(model: PortraitModel[Any], source: Source) -> tuple[SourceKeypoints, SourceTensors]:
    if source.motion.kp is None:
        raise ValueError("source must have canonical keypoints, got kp=None")
    keypoints = SourceKeypoints(source.motion.kp, source.x_s, pack(source.motion))
    return keypoints, model.prepare_warp(source.feature_3d, source.x_s)
