"""What a source picture gives to every frame, as tensors that can be kept, overwritten in place and shared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Own = TypeVar("Own", bound="SourceTensors")


class SourceTensors:
    """A dataclass of tensors whose first axis is the batch of sources; 1 serves any number of driving poses."""

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: tensor for name, tensor in fields.items() if tensor is not None}

    @property
    def batch(self) -> int:
        """The number of sources."""
        return next(iter(self.tensors().values())).shape[0]

    def copy_(self: Own, other: Own) -> Own:
        """Take over the values of ``other`` in this source's memory, which a CUDA graph may hold; returns itself.

        Raises:
            ValueError: one holds a tensor that the other lacks, or shapes differ.
        """
        mine, theirs = self.tensors(), other.tensors()
        shapes = [{name: tuple(tensor.shape) for name, tensor in part.items()} for part in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"other must hold tensors of shapes {shapes[0]}, got {shapes[1]}")
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])
        return self

    def expand(self: Own, batch: int) -> Own:
        """One source for ``batch`` driving poses: views, nothing is copied."""
        views = {name: tensor.expand(batch, *tensor.shape[1:]) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, **views)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class WarpSource(SourceTensors):
    """The plain networks' source: nothing is computed ahead.

    Attributes:
        feature_3d: F's feature volume, (B, C, D, h, w) float32.
        kp_source: the source's keypoints, (B, K, 3) float32, normalised coordinates.
    """

    feature_3d: Tensor
    kp_source: Tensor
