"""Each network, one call at a time: latency from the call to the finished result."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from benchmarks import providers
from benchmarks.context import Context
from benchmarks.networks import NETWORKS, Network, Random, parameters
from benchmarks.work import Measurement, Subject, tensors


def measure(context: Context) -> Iterator[list[Measurement]]:
    """Measure every network at every batch, those a frame needs first."""
    for batch in context.batches:
        for network in NETWORKS:
            if context.options.wants(network.name):
                yield context.harness.measure(subject(network, context, batch))


def subject(network: Network, context: Context, batch: int = 1) -> Subject:
    """A network on its real shapes; bytes are weights, inputs and what is compared of the answer, once each.

    FLOPs are counted on the baseline.
    """
    module = network.module(context.model)

    def inputs(seed: int) -> tuple[Tensor, ...]:
        return network.inputs(context.config, batch, Random(seed, context.device))

    example = inputs(0)
    moved = sum(tensor.numel() for tensor in [*example, *tensors(network.compared(module(*example)))])
    return Subject(
        level="networks",
        name=network.name,
        shape=" ".join("x".join(map(str, tensor.shape[1:])) for tensor in example),
        batch=batch,
        inputs=inputs,
        reference=module,
        providers=providers.of_network(module, context.device),
        elements=parameters(module) + moved,
        compared=network.compared,
    )
