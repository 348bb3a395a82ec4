"""Motion of a head: what the motion extractor's heads mean, and the keypoints they give (paper, section 3.1).

Keypoints are in normalised coordinates: -1..1 across the picture, x right, y down, z in. Nothing here waits for the
device or branches on values, so a CUDA graph can capture all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import _checks

POSE_BINS = 66
DEGREES_PER_BIN = 3.0
FIRST_BIN_DEGREES = -97.5
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Motion:
    """Pose, expression and keypoints of B pictures.

    Attributes:
        kp: canonical keypoints (B, K, 3), free of pose and expression; None where only the motion is known, as in
            most motion templates.
        exp: expression offsets of the keypoints (B, K, 3).
        R: head rotation (B, 3, 3), to be multiplied from the right: ``kp @ R``.
        t: translation (B, 3); its z is never used.
        scale: (B, 1).
    """

    kp: Tensor | None
    exp: Tensor
    R: Tensor
    t: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return self.exp.shape[0]

    def __getitem__(self, index: int | slice) -> Motion:
        return self.select(index)

    def select(self, index: int | slice) -> Motion:
        """One picture (batch 1) or a slice of them.

        Raises:
            IndexError: no picture has this index.
        """
        if isinstance(index, slice):
            part = index
        else:
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range for a motion of {len(self)} pictures")
            position = index % len(self)
            part = slice(position, position + 1)
        kp = None if self.kp is None else self.kp[part]
        return Motion(kp, self.exp[part], self.R[part], self.t[part], self.scale[part])

    def to(self, device: torch.device | str) -> Motion:
        """The same motion on ``device``; tensors already there are shared."""
        kp = None if self.kp is None else self.kp.to(device)
        return Motion(kp, self.exp.to(device), self.R.to(device), self.t.to(device), self.scale.to(device))


def headpose_to_degrees(bins: Tensor) -> Tensor:
    """An angle from its bins: ``3 * sum_i(i * softmax(bins)_i) - 97.5``.

    Args:
        bins: (B, 66) float32 or float64 logits.

    Returns:
        Degrees, (B, 1).

    Raises:
        TypeError, ValueError: another dtype or shape.
    """
    _checks.dtype("bins", _checks.is_tensor("bins", bins), _DTYPES)
    _checks.shape("bins", bins, ("B", POSE_BINS))
    index = torch.arange(POSE_BINS, dtype=bins.dtype, device=bins.device)
    return (bins.softmax(dim=1) * index).sum(dim=1, keepdim=True) * DEGREES_PER_BIN + FIRST_BIN_DEGREES


def rotation_matrix(pitch: Tensor, yaw: Tensor, roll: Tensor) -> Tensor:
    """``R = (Rz(roll) Ry(yaw) Rx(pitch))^T``, to be multiplied from the right.

    Args:
        pitch, yaw, roll: degrees, (B, 1) float32 or float64.

    Returns:
        (B, 3, 3).

    Raises:
        TypeError, ValueError: another dtype or shape.
    """
    for name, angle in (("pitch", pitch), ("yaw", yaw), ("roll", roll)):
        _checks.dtype(name, _checks.is_tensor(name, angle), _DTYPES)
        _checks.shape(name, angle, ("B", 1))
    x, y, z = (angle[:, 0] * (math.pi / 180) for angle in (pitch, yaw, roll))
    (cx, sx), (cy, sy), (cz, sz) = ((angle.cos(), angle.sin()) for angle in (x, y, z))
    rows = (
        (cz * cy, sz * cy, -sy),
        (cz * sy * sx - sz * cx, sz * sy * sx + cz * cx, cy * sx),
        (cz * sy * cx + sz * sx, sz * sy * cx - cz * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of small matrices (..., n, 3) and (..., 3, m), in the precision of its inputs.

    A library matmul would round keypoints when the program around it allows TF32 or runs under autocast.
    """
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(dim=-2)


def refine_motion(heads: Mapping[str, Tensor]) -> Motion:
    """The motion extractor's raw heads as a Motion.

    Args:
        heads: ``pitch``, ``yaw``, ``roll`` (B, 66) logits; ``t`` (B, 3); ``exp`` and ``kp`` (B, 3K); ``scale`` (B, 1).

    Raises:
        KeyError: a head is missing.
        TypeError, ValueError: another dtype or shape.
    """
    batch = heads["exp"].shape[0]
    pitch, yaw, roll = (headpose_to_degrees(heads[name]) for name in ("pitch", "yaw", "roll"))
    return Motion(
        kp=heads["kp"].reshape(batch, -1, 3),
        exp=heads["exp"].reshape(batch, -1, 3),
        R=rotation_matrix(pitch, yaw, roll),
        t=heads["t"],
        scale=heads["scale"],
    )


def transform_keypoints(kp: Tensor, R: Tensor, exp: Tensor, scale: Tensor, t: Tensor) -> Tensor:
    """Keypoints in the picture: ``x = scale * (kp @ R + exp) + t`` (Eqn. 2), with t's x and y only.

    Args:
        kp, exp: (B, K, 3); R: (B, 3, 3); scale: (B, 1); t: (B, 3). A batch of 1 goes with any other.

    Returns:
        (B, K, 3).
    """
    shift = F.pad(t[:, :2], (0, 1))
    return scale[:, :, None] * (matmul(kp, R) + exp) + shift[:, None, :]


def source_keypoints(motion: Motion) -> Tensor:
    """A picture's keypoints x_s, (B, K, 3), from its own motion (Eqn. 2).

    Raises:
        ValueError: the motion has no canonical keypoints.
    """
    if motion.kp is None:
        raise ValueError("motion must have canonical keypoints, got kp=None: this template holds the motion alone")
    return transform_keypoints(motion.kp, motion.R, motion.exp, motion.scale, motion.t)
