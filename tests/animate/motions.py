"""Motions and stand-ins for the networks that the motion tests share."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels.animate.motion import Motion, rotation_matrix


def random_motion(batch: int, num_kp: int = 21, seed: int = 0, dtype: torch.dtype = torch.float32) -> Motion:
    """A motion in a trained model's range."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(*shape, generator=numbers, dtype=dtype)

    return Motion(
        kp=normal(batch, num_kp, 3, scale=0.3),
        exp=normal(batch, num_kp, 3, scale=0.03),
        R=rotation_matrix(*(normal(batch, 1, scale=20) for _ in range(3))),
        t=normal(batch, 3, scale=0.1),
        scale=1.3 + normal(batch, 1, scale=0.1),
    )


class LinearRetargeter:
    """Three random linear maps instead of the MLPs; ``seen`` keeps the rows that each was called with."""

    def __init__(self, num_kp: int = 21, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        sizes = {"stitch": (6, 0, 2), "eye": (3, 3, 0), "lip": (3, 2, 0)}
        numbers = torch.Generator().manual_seed(7)
        self.weights = {
            name: (0.01 * torch.randn(per_kp * num_kp + more, 3 * num_kp + out, generator=numbers)).to(device, dtype)
            for name, (per_kp, more, out) in sizes.items()
        }
        self.seen: dict[str, Tensor] = {}

    def _call(self, name: str, features: Tensor) -> Tensor:
        self.seen[name] = features
        return features @ self.weights[name]

    def stitch(self, features: Tensor) -> Tensor:
        return self._call("stitch", features)

    def retarget_eye(self, features: Tensor) -> Tensor:
        return self._call("eye", features)

    def retarget_lip(self, features: Tensor) -> Tensor:
        return self._call("lip", features)
