"""The whole frame, uint8 in and uint8 out on the device, batch 1 unless asked otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks import frame
from benchmarks.context import Context
from benchmarks.work import Measurement, Provider, Subject

# Cutting to 8 bits turns the last bit of an FP32 sum into a whole level, in a few pixels of a thousand.
EIGHT_BIT_FLOOR = 5e-4


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Measure the frame with every provider."""
    for batch in context.batches:
        providers = frame.of_frame(context.model, context.device)
        yield context.harness.measure(subject(context, providers, batch))


def subject(context: Context, providers: Sequence[Provider], batch: int = 1, level: str = "frame") -> Subject:
    """A frame step on ``batch`` driving frames of one source."""
    size, output = context.config.image_size, context.config.output_size
    return Subject(
        level=level,
        name="frame",
        shape=f"{size}x{size} -> {output}x{output}",
        batch=batch,
        inputs=lambda seed: frame.driving(size, batch, seed, context.device),
        reference=frame.reference(context.model, context.device),
        providers=providers,
        elements=frame.weights(context.model),
        fixed_bytes=3 * batch * (size**2 + output**2),
        frames=batch,
        floor=EIGHT_BIT_FLOOR,
    )
