"""keypoint_transform as the original writes it: pose from bins, the source's new motion, its keypoints (Eqn. 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_Motion = tuple[Tensor, Tensor, Tensor, Tensor]  # exp (B, K, 3), R (B, 3, 3), t (B, 3), scale (B, 1)


def keypoint_transform(
    driving: Tensor,
    kp: Tensor,
    x_s: Tensor,
    source: Tensor,
    first: Tensor | None,
    taken: Tensor | None,
    multiplier: Tensor | None,
    bins: int,
    relative: bool,
    pose: bool,
    scale: bool,
    driving_multiplier: float,
) -> tuple[Tensor, Tensor]:
    """Driving keypoints and the driving motion; see ``lpkernels.ops.keypoint_transform``.

    Computes in the dtype of ``driving``, float32 or float64.
    """
    keypoints = kp.shape[1]
    own = _read_heads(driving, keypoints, bins) if bins else _read_motion(driving, keypoints)
    theirs = own if first is None else _read_motion(first, keypoints)

    def moved(motion: _Motion) -> Tensor:
        new = _combine(_read_motion(source, keypoints), motion, theirs, taken, relative, pose, scale)
        return _keypoints(kp, new)

    x_d = moved(own)
    if multiplier is not None:
        x_d = x_s + (x_d - moved(theirs)) * multiplier[:, None, None]
    packed = torch.cat([part.flatten(1) for part in own], dim=1)
    return x_s + (x_d - x_s) * driving_multiplier, packed


def _read_motion(rows: Tensor, keypoints: int) -> _Motion:
    exp, R, t, scale = rows.split([3 * keypoints, 9, 3, 1], dim=1)
    return exp.unflatten(1, (keypoints, 3)), R.unflatten(1, (3, 3)), t, scale


def _read_heads(rows: Tensor, keypoints: int, bins: int) -> _Motion:
    sizes = [bins, bins, bins, 3, 3 * keypoints, 1, 3 * keypoints]
    pitch, yaw, roll, t, exp, scale, _ = rows.split(sizes, dim=1)
    index = torch.arange(bins, dtype=rows.dtype, device=rows.device)
    degrees = [(logits.softmax(dim=1) * index).sum(dim=1) * 3 - 97.5 for logits in (pitch, yaw, roll)]
    return exp.unflatten(1, (keypoints, 3)), _rotation(*degrees), t, scale


def _rotation(pitch: Tensor, yaw: Tensor, roll: Tensor) -> Tensor:
    """(Rz(roll) Ry(yaw) Rx(pitch))^T from degrees (B,)."""
    matrices = []
    for axis, degrees in enumerate((pitch, yaw, roll)):
        radians = degrees * (math.pi / 180)
        cosine, sine, zero, one = radians.cos(), radians.sin(), torch.zeros_like(radians), torch.ones_like(radians)
        after, before = (axis + 1) % 3, (axis + 2) % 3
        entries = {(axis, axis): one, (after, after): cosine, (before, before): cosine}
        entries |= {(after, before): -sine, (before, after): sine}
        rows = [torch.stack([entries.get((i, j), zero) for j in range(3)], dim=1) for i in range(3)]
        matrices.append(torch.stack(rows, dim=1))
    x, y, z = matrices
    return _product(_product(z, y), x).transpose(1, 2)


def _combine(
    source: _Motion, driving: _Motion, first: _Motion, taken: Tensor | None, relative: bool, pose: bool, scale: bool
) -> _Motion:
    """The source's new motion: the driving one, or its change since the first frame, where the options say so."""
    exp_s, R_s, t_s, scale_s = source
    exp_d, R_d, t_d, scale_d = driving
    exp_0, R_0, t_0, scale_0 = first
    exp = exp_s + (exp_d - exp_0) if relative else exp_d
    exp = exp if taken is None else torch.where(taken, exp, exp_s)
    if pose:
        R_s = _product(_product(R_d, R_0.transpose(1, 2)), R_s) if relative else R_d
        t_s = t_s + (t_d - t_0) if relative else t_d
    if scale and relative:
        scale_s = scale_s * (scale_d / scale_0)
    return exp, R_s, t_s, scale_s


def _keypoints(kp: Tensor, motion: _Motion) -> Tensor:
    exp, R, t, scale = motion
    shift = torch.cat([t[:, :2], torch.zeros_like(t[:, :1])], dim=1)
    return scale[:, :, None] * (_product(kp, R) + exp) + shift[:, None, :]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` without a library's product, which TF32 or autocast would round."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(dim=-2)
