"""From raw heads to driving keypoints in two ops: the motion's arithmetic, then the stitching MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpkernels import ops
from lpkernels.errors import InputError
from lpkernels.models.convnextv2 import ConvNeXtV2
from lpkernels.ops.keypoint_transform import POSE_BINS


def pack_heads(heads: Mapping[str, Tensor]) -> Tensor:
    """The motion extractor's heads side by side, as ``KeypointPath`` takes them: (B, 3 bins + 6K + 4)."""
    return torch.cat([heads[name] for name in ConvNeXtV2.HEADS], dim=1)


@dataclass(frozen=True, eq=False)
class SourceKeypoints:
    """What the path needs of the source picture, on its device in float32.

    Attributes:
        kp: canonical keypoints, (1 or B, K, 3).
        x_s: its keypoints in the picture, (1 or B, K, 3), normalised coordinates.
        motion: its packed motion, (1 or B, 3K + 13); see ``ops.pack_motion``.
    """

    kp: Tensor
    x_s: Tensor
    motion: Tensor


class KeypointPath(nn.Module):
    """All of a frame between the motion extractor and the warping module (LivePortrait, section 3.3, algorithm 1).

    Two kernels a call, one more for each retargeting; nothing waits for the device or branches on values, so a CUDA
    graph can capture it. Numbers given as floats become part of such a graph, tensors are read at each replay.

    Args:
        module: the baseline's MLPs ``stitching``, ``eye`` and ``lip``; copied, on their device.
        relative: add the driving motion's change since its first frame to the source's motion; else take the driving
            motion itself.
        taken: (K, 3) bool, the coordinates of the expression that come from the driving motion; None: all.
        pose: rotation and translation follow the driving motion.
        scale: so does the scale, in relative motion.
        driving_multiplier: strength of the whole motion.
        stitching: let the stitching MLP keep the shoulders where they are.
        source_eye_ratio: how far the source's left and right eye are open; with it eyes are retargeted.
        source_lip_ratio: how far the source's lips are open; with it lips are retargeted.
        bins: bins of an angle in the heads.
    """

    taken: Tensor | None

    def __init__(
        self,
        module: nn.ModuleDict,
        *,
        relative: bool = True,
        taken: Tensor | None = None,
        pose: bool = True,
        scale: bool = True,
        driving_multiplier: float = 1.0,
        stitching: bool = True,
        source_eye_ratio: Sequence[float] | None = None,
        source_lip_ratio: float | None = None,
        bins: int = POSE_BINS,
    ) -> None:
        super().__init__()
        self.relative, self.pose, self.scale, self.bins = relative, pose, scale, bins
        self.driving_multiplier = float(driving_multiplier)
        self.register_buffer("taken", taken, persistent=False)
        self.eye = None if source_eye_ratio is None else _Mlp(module["eye"], "eye", source_eye_ratio)
        self.lip = None if source_lip_ratio is None else _Mlp(module["lip"], "lip", [source_lip_ratio])
        self.stitching = _Mlp(module["stitching"], "stitching") if stitching else None

    def forward(
        self,
        heads: Tensor,
        source: SourceKeypoints,
        first: Tensor | None = None,
        eye_ratio: float | Tensor | None = None,
        lip_ratio: float | Tensor | None = None,
        motion_multiplier: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The source's keypoints under the motion in raw heads.

        Args:
            heads: (B, 3 bins + 6K + 4) float32, in the order of ``ConvNeXtV2.HEADS``.
            first: the first driving frame's packed motion, (1 or B, 3K + 13); None: this is the first frame.
            eye_ratio, lip_ratio: how far eyes and lips shall be open where they are retargeted, height by width; a
                number or a float32 tensor of 1 or B values on the device.
            motion_multiplier: of expression-friendly motion, a number or a float32 tensor of 1 or B values; None:
                pose-friendly.

        Returns:
            x_d: (B, K, 3) float32.
            motion: the driving motion, packed, (B, 3K + 13): what ``first`` is in later calls.

        Raises:
            InputError: retargeting without a ratio.
            TypeError, ValueError: tensors that do not fit; see ``ops.keypoint_transform``.
        """
        return self._drive(heads, self.bins, source, first, eye_ratio, lip_ratio, motion_multiplier)

    def from_motion(
        self,
        motion: Tensor,
        source: SourceKeypoints,
        first: Tensor | None = None,
        eye_ratio: float | Tensor | None = None,
        lip_ratio: float | Tensor | None = None,
        motion_multiplier: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same for a packed motion (B, 3K + 13), such as a template's."""
        return self._drive(motion, 0, source, first, eye_ratio, lip_ratio, motion_multiplier)

    @torch.no_grad()
    def _drive(
        self,
        driving: Tensor,
        bins: int,
        source: SourceKeypoints,
        first: Tensor | None,
        eye_ratio: float | Tensor | None,
        lip_ratio: float | Tensor | None,
        motion_multiplier: float | Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        steps = [
            (mlp, mlp.checked(ratio))
            for mlp, ratio in ((self.eye, eye_ratio), (self.lip, lip_ratio), (self.stitching, None))
            if mlp is not None
        ]
        if motion_multiplier is not None and not isinstance(motion_multiplier, Tensor):
            motion_multiplier = source.x_s.new_full((1,), motion_multiplier)
        # The multiplier comes last, whichever op that is.
        strengths = [1.0] * len(steps) + [self.driving_multiplier]
        x_d, motion = ops.keypoint_transform(
            driving,
            source.kp,
            source.x_s,
            source.motion,
            first,
            self.taken,
            motion_multiplier,
            bins,
            self.relative,
            self.pose,
            self.scale,
            strengths.pop(0),
        )
        if self.relative and (self.eye is not None or self.lip is not None):
            x_d = source.x_s.expand_as(x_d)  # in relative motion retargeting replaces the driving motion
        for (mlp, ratio), strength in zip(steps, strengths, strict=True):
            x_d = mlp(source.x_s, x_d, ratio, strength)
        return x_d, motion


class _Mlp(nn.Module):
    """One MLP with packed weights; ``constants``: the source's ratios, where it retargets."""

    weights: Tensor

    def __init__(self, network: nn.Module, name: str, constants: Sequence[float] = ()) -> None:
        super().__init__()
        layers = [(layer.weight, layer.bias) for layer in network.modules() if isinstance(layer, nn.Linear)]
        weights, self.sizes = ops.pack_mlp(layers)
        self.register_buffer("weights", weights, persistent=False)
        self.name, self.constants = name, [float(value) for value in constants]

    def checked(self, ratio: float | Tensor | None) -> float | Tensor | None:
        if self.constants and ratio is None:
            raise InputError(f"{self.name} retargeting needs {self.name}_ratio with every driving frame, got None")
        return ratio

    def forward(self, x_s: Tensor, x_d: Tensor, ratio: float | Tensor | None, multiplier: float) -> Tensor:
        if isinstance(ratio, Tensor):
            column = ratio.reshape(-1, 1)
            return ops.stitch_mlp(x_s, x_d, self.weights, self.sizes, self.constants, column, multiplier)
        constants = self.constants + ([] if ratio is None else [float(ratio)])
        return ops.stitch_mlp(x_s, x_d, self.weights, self.sizes, constants, None, multiplier)
