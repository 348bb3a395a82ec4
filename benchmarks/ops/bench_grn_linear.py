"""grn_linear: response norm, narrowing linear layer and residual of every block of the motion extractor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import Stage, stages
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (0, 3, 5)  # activations, weight and residual; squares, gamma and bias stay FP32


def published(x: Tensor, squares: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """GRN from the activations themselves, as the network writes it; the sums of squares are not read."""
    response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    normalized = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
    return residual + F.linear(gamma.to(x.dtype) * (x * normalized) + x, weight, bias.to(x.dtype))


def subjects(context: Context) -> Iterator[Subject]:
    """Each stage at each batch."""
    for stage in stages(context):
        wide, outputs = 4 * stage.channels, stage.channels
        tiles = ref.tile_count(stage.side, stage.side, stage.channels)

        def inputs(seed: int, stage: Stage = stage, wide: int = wide, tiles: int = tiles) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            x = F.gelu(random.normal(*stage.shape[:3], wide) * random.normal(wide))
            parts = x.flatten(1, 2).chunk(tiles, dim=1)
            squares = torch.stack([part.square().sum(1) for part in parts], dim=1)
            weight = random.normal(stage.channels, wide, scale=wide**-0.5)
            vectors = random.normal(wide), random.normal(stage.channels)
            return x, squares, vectors[0], weight, vectors[1], random.normal(*stage.shape)

        yield Subject(
            level="ops",
            name="grn_linear",
            shape=f"{stage.side}x{stage.side}x{wide} -> {outputs}",
            batch=stage.batch,
            inputs=inputs,
            reference=ref.grn_linear,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("grn_linear", LOWERED, context.device),
            ],
            elements=stage.pixels * (wide + 2 * outputs) + wide * outputs,
            fixed_bytes=4 * (wide * (1 + stage.batch * tiles) + outputs),
            flops=2 * stage.pixels * wide * outputs,
            kernel=True,
        )
