"""The motion extractor's shapes, for the benchmarks of its ops."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.context import Context

PATCH = 4


@dataclass(frozen=True)
class Stage:
    """Height, width and channels of one stage's activations at one batch."""

    batch: int
    side: int
    channels: int

    @property
    def pixels(self) -> int:
        """Of all images."""
        return self.batch * self.side**2

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.side, self.side, self.channels

    def __str__(self) -> str:
        return f"{self.side}x{self.side}x{self.channels}"


def stages(context: Context) -> list[Stage]:
    """Every stage at every batch."""
    side, dims = context.config.image_size // PATCH, context.config.motion_extractor.dims
    return [Stage(batch, side >> index, dim) for batch in context.batches for index, dim in enumerate(dims)]
