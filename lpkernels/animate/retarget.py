"""From a driving motion to the source's driving keypoints x_d (paper, section 3.3 and algorithm 1).

All functions are batched and, except for ``convex_hull_multiplier``, neither wait for the device nor branch on values,
so that ``drive`` can be captured in a CUDA graph after one call to warm it up.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lpkernels import _checks
from lpkernels.animate.motion import Motion, matmul, transform_keypoints
from lpkernels.errors import InputError, LpkernelsError

REGIONS = ("all", "exp", "pose", "lip", "eyes")
DRIVING_OPTIONS = ("pose-friendly", "expression-friendly")

# The original's index lists: (keypoints, axes) of the expression that a region takes from the driving motion.
X, Y, Z = 0, 1, 2
_Group = tuple[tuple[int, ...], tuple[int, ...]]
_EXPRESSION: tuple[_Group, ...] = (
    ((1, 2, 6, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), (X, Y, Z)),
    ((3, 4), (Y,)),
    ((5, 8), (Z,)),
    ((9,), (Y, Z)),
)
_LIP: tuple[_Group, ...] = (((6, 12, 14, 17, 19, 20), (X, Y, Z)),)
_EYES: tuple[_Group, ...] = (((11, 13, 15, 16, 18), (X, Y, Z)),)
_TAKEN = {"all": _EXPRESSION, "exp": _EXPRESSION, "pose": (), "lip": _LIP, "eyes": _EYES}
_LISTED_KEYPOINTS = 21


class Retargeter(Protocol):
    """The part of ``LivePortrait`` that ``drive`` calls: the three MLPs, on float32 rows."""

    def stitch(self, features: Tensor) -> Tensor: ...

    def retarget_eye(self, features: Tensor) -> Tensor: ...

    def retarget_lip(self, features: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class MotionOptions:
    """How a driving motion is put on the source.

    Attributes:
        relative: add the driving motion's change since its first frame to the source's motion; else take the driving
            motion itself.
        region: what moves: ``all``; ``exp``, the expression; ``pose``, rotation and translation; ``lip``; ``eyes``.
        driving_multiplier: strength of the whole motion, 0 or more.
        driving_option: ``pose-friendly``, or ``expression-friendly``, which scales the relative motion by the size of
            the source's face against the first frame's.
        stitching: let the stitching MLP keep the shoulders where they are.
        eye_retargeting, lip_retargeting: open eyes or lips as far as the ratios given with each frame. In relative
            motion they replace the driving motion, as in the original.
        source_eye_ratio: how far the source's left and right eye are open, height by width.
        source_lip_ratio: how far the source's lips are open, height by width.

    Raises:
        InputError: a value out of range, or options that exclude each other.
    """

    relative: bool = True
    region: str = "all"
    driving_multiplier: float = 1.0
    driving_option: str = "pose-friendly"
    stitching: bool = True
    eye_retargeting: bool = False
    lip_retargeting: bool = False
    source_eye_ratio: tuple[float, float] | None = None
    source_lip_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise InputError(f"region must be one of {', '.join(REGIONS)}; got {self.region!r}")
        if self.driving_option not in DRIVING_OPTIONS:
            raise InputError(f"driving_option must be one of {', '.join(DRIVING_OPTIONS)}; got {self.driving_option!r}")
        if self.expression_friendly and not self.relative:
            raise InputError("driving_option 'expression-friendly' needs relative motion, got relative=False")
        _check_ratio("driving_multiplier", self.driving_multiplier)
        if self.source_eye_ratio is not None:
            if not isinstance(self.source_eye_ratio, tuple | list) or len(self.source_eye_ratio) != 2:
                raise InputError(f"source_eye_ratio must be (left, right), got {self.source_eye_ratio!r}")
            for ratio in self.source_eye_ratio:
                _check_ratio("source_eye_ratio", ratio)
        if self.source_lip_ratio is not None:
            _check_ratio("source_lip_ratio", self.source_lip_ratio)
        if self.eye_retargeting and self.source_eye_ratio is None:
            raise InputError("eye_retargeting needs source_eye_ratio: how far the source's two eyes are open")
        if self.lip_retargeting and self.source_lip_ratio is None:
            raise InputError("lip_retargeting needs source_lip_ratio: how far the source's lips are open")

    @property
    def expression_friendly(self) -> bool:
        return self.driving_option == "expression-friendly"

    def check_ratios(self, eye_ratio: float | Tensor | None, lip_ratio: float | Tensor | None) -> None:
        """Raise InputError if a frame's ratio is missing that these options call for, or out of range."""
        for name, wanted, ratio in (
            ("eye", self.eye_retargeting, eye_ratio),
            ("lip", self.lip_retargeting, lip_ratio),
        ):
            if wanted and ratio is None:
                raise InputError(f"{name}_retargeting needs {name}_ratio with every driving frame, got None")
            if ratio is not None and not isinstance(ratio, Tensor):
                _check_ratio(f"{name}_ratio", ratio)


def drive(
    model: Retargeter,
    source: Motion,
    x_s: Tensor,
    driving: Motion,
    first: Motion,
    options: MotionOptions,
    eye_ratio: float | Tensor | None = None,
    lip_ratio: float | Tensor | None = None,
    motion_multiplier: float | Tensor | None = None,
) -> Tensor:
    """The source's keypoints under a driving motion.

    Args:
        model: the stitching and retargeting MLPs.
        source: the source's motion, batch 1 or B, with its canonical keypoints.
        x_s: the source's keypoints (1 or B, K, 3).
        driving: the driving motion, batch B.
        first: the first driving frame's motion, batch 1 or B; unused in absolute motion.
        eye_ratio, lip_ratio: how far eyes and lips shall be open, height by width; a number or (B, 1).
        motion_multiplier: what ``convex_hull_multiplier`` gave for ``first``; with None, expression-friendly
            options have each call compute it.

    Returns:
        x_d, (B, K, 3).

    Raises:
        InputError: retargeting without a ratio.
        ValueError: batches or numbers of keypoints that do not fit, or a source without canonical keypoints.
        LpkernelsError: see ``convex_hull_multiplier``.
    """
    options.check_ratios(eye_ratio, lip_ratio)
    _checks.shape("x_s", x_s, (1 if x_s.shape[0] == 1 else len(driving), source.exp.shape[1], 3))
    x_d = _driven_keypoints(source, driving, first, options)
    if options.expression_friendly:
        if motion_multiplier is None:
            motion_multiplier = convex_hull_multiplier(source, x_s, first, options)
        x_d = x_s + (x_d - _driven_keypoints(source, first, first, options)) * motion_multiplier
    x_s = x_s.expand_as(x_d)
    if options.eye_retargeting or options.lip_retargeting:
        x_d = _retargeted(model, x_s, x_d, options, eye_ratio, lip_ratio)
    if options.stitching:
        x_d = stitched(model, x_s, x_d)
    return x_s + (x_d - x_s) * options.driving_multiplier


def convex_hull_multiplier(source: Motion, x_s: Tensor, first: Motion, options: MotionOptions) -> Tensor:
    """The ``motion_multiplier`` of expression-friendly motion: ``sqrt(V(x_s) / V(x_d0))``.

    V is the volume of the keypoints' convex hull, x_d0 the source's keypoints under the first driving frame. Runs on
    the host.

    Args:
        source, x_s, first, options: as for ``drive``.

    Returns:
        (B, 1, 1), with dtype and device of ``x_s``.

    Raises:
        LpkernelsError: keypoints that are not finite or lie in one plane.
    """
    x_s, x_d_first = torch.broadcast_tensors(x_s, _driven_keypoints(source, first, first, options))
    pairs = zip(x_s.detach().cpu(), x_d_first.detach().cpu(), strict=True)
    ratios = [math.sqrt(_hull_volume("x_s", a) / _hull_volume("the first driving frame", b)) for a, b in pairs]
    return torch.tensor(ratios, dtype=x_s.dtype, device=x_s.device)[:, None, None]


def stitched(model: Retargeter, x_s: Tensor, x_d: Tensor) -> Tensor:
    """x_d plus the stitching MLP's offset of every keypoint and its (x, y) shift of all; x_s and x_d (B, K, 3)."""
    batch, num_kp = x_d.shape[:2]
    delta = model.stitch(torch.cat([x_s.reshape(batch, -1), x_d.reshape(batch, -1)], dim=1))
    offsets, shift = delta.split([3 * num_kp, 2], dim=1)
    return x_d + offsets.reshape(batch, num_kp, 3) + torch.nn.functional.pad(shift, (0, 1))[:, None, :]


def combine_motion(source: Motion, driving: Motion, first: Motion, options: MotionOptions) -> Motion:
    """The source's new motion: the driving one in ``options.region``, its own elsewhere.

    Relative: ``R = (R_d R_d0^T) R_s``, ``exp = exp_s + exp_d - exp_d0``, ``t = t_s + t_d - t_d0`` and
    ``scale = scale_s scale_d / scale_d0``, the scale in the region ``all`` only. Absolute: R, exp and t are the driving
    motion's, the scale the source's.
    """
    exp = source.exp + (driving.exp - first.exp) if options.relative else driving.exp
    taken = _taken_coordinates(options.region, options.relative, source.exp.shape[1], source.exp.device)
    exp = exp if taken is None else torch.where(taken, exp, source.exp)
    R, t, scale = source.R, source.t, source.scale
    if options.region in ("all", "pose"):
        if options.relative:
            R = matmul(matmul(driving.R, first.R.transpose(1, 2)), source.R)
            t = source.t + (driving.t - first.t)
        else:
            R, t = driving.R, driving.t
    if options.region == "all" and options.relative:
        scale = source.scale * (driving.scale / first.scale)
    return Motion(source.kp, exp, R, t, scale)


def _driven_keypoints(source: Motion, driving: Motion, first: Motion, options: MotionOptions) -> Tensor:
    """Keypoints of the combined motion, before stitching and retargeting (Eqn. 2)."""
    if source.kp is None:
        raise ValueError("source must have canonical keypoints, got kp=None: a template without kp cannot be a source")
    batch, num_kp = driving.exp.shape[0], source.exp.shape[1]
    _checks.shape("driving.exp", driving.exp, ("B", num_kp, 3))
    for name, motion in (("source", source), ("first", first)):
        _checks.shape(f"{name}.exp", motion.exp, (1 if len(motion) == 1 else batch, num_kp, 3))
    new = combine_motion(source, driving, first, options)
    return transform_keypoints(source.kp, new.R, new.exp, new.scale, new.t)


@functools.lru_cache(maxsize=64)
def _taken_coordinates(region: str, relative: bool, num_kp: int, device: torch.device) -> Tensor | None:
    """Which of the expression's coordinates (K, 3) come from the driving motion; None for all of them.

    Cached: a copy from the host would end a CUDA graph's capture.
    """
    if region in ("all", "exp") and relative:
        return None
    if num_kp != _LISTED_KEYPOINTS:
        raise ValueError(
            f"region {region!r} with relative={relative} is defined for {_LISTED_KEYPOINTS} keypoints, got {num_kp}"
        )
    taken = torch.zeros(num_kp, 3, dtype=torch.bool)
    for keypoints, axes in _TAKEN[region]:
        taken[np.ix_(keypoints, axes)] = True
    return taken.to(device)


def _retargeted(
    model: Retargeter,
    x_s: Tensor,
    x_d: Tensor,
    options: MotionOptions,
    eye_ratio: float | Tensor | None,
    lip_ratio: float | Tensor | None,
) -> Tensor:
    """Eyes and lips opened to the given ratios, from x_s in relative motion and from x_d in absolute."""
    x_new = x_s if options.relative else x_d
    if options.eye_retargeting and options.source_eye_ratio is not None and eye_ratio is not None:
        x_new = x_new + model.retarget_eye(_with_ratios(x_s, *options.source_eye_ratio, eye_ratio)).reshape(x_s.shape)
    if options.lip_retargeting and options.source_lip_ratio is not None and lip_ratio is not None:
        x_new = x_new + model.retarget_lip(_with_ratios(x_s, options.source_lip_ratio, lip_ratio)).reshape(x_s.shape)
    return x_new


def _with_ratios(x_s: Tensor, *ratios: float | Tensor) -> Tensor:
    """A retargeting MLP's rows: flattened keypoints, the source's ratios, the wanted one; (B, 3K + len(ratios))."""
    batch = x_s.shape[0]
    columns = [
        ratio.to(x_s).reshape(-1, 1).expand(batch, 1) if isinstance(ratio, Tensor) else x_s.new_full((batch, 1), ratio)
        for ratio in ratios
    ]
    return torch.cat([x_s.reshape(batch, -1), *columns], dim=1)


def _hull_volume(name: str, points: Tensor) -> float:
    """Volume of the convex hull of (K, 3) points."""
    from scipy.spatial import ConvexHull, QhullError  # here: a quarter of a second, for one option

    try:
        return ConvexHull(points.double().numpy()).volume
    except (QhullError, ValueError) as error:
        cause = "keypoints that are not finite" if not bool(points.isfinite().all()) else "keypoints in one plane"
        raise LpkernelsError(
            f"expression-friendly motion needs a volume of {name}'s keypoints, got {cause}; use pose-friendly"
        ) from error


def _check_ratio(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be a number of 0 or more, got {value!r}")
