"""stitch_mlp: the stitching MLP and the two retargeting MLPs with the keypoints' update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import KEYPOINTS, Random
from benchmarks.ops.bench_keypoint_transform import single_precision
from benchmarks.work import Subject
from lpkernels import ops, ref
from lpkernels.models.config import MLPConfig
from lpkernels.ops.stitch_mlp import packed_mlp_size

OPENING = 0.3  # every ratio, known on the host


class Published:
    """One MLP as its module runs it: concatenation, a linear layer and a ReLU at a time, the update."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def _layers(self, packed: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """(inputs + 1, outputs) of each layer, unpacked once, as a network would hold them."""
        held = self._held.get(id(packed))
        if held is None or held[0] is not packed:
            rows, begin = [], 0
            for inputs, outputs in pairwise(sizes):
                end = begin + packed_mlp_size((inputs, outputs))
                rows.append(packed[begin:end].view(inputs + 1, -1)[:, :outputs].contiguous())
                begin = end
            held = self._held[id(packed)] = (packed, rows)
        return held[1]

    def __call__(
        self, x_s: Tensor, x_d: Tensor, packed: Tensor, sizes: Sequence[int], ratios: Sequence[float]
    ) -> Tensor:
        rest = x_d.new_full((x_d.shape[0], len(ratios)), OPENING) if ratios else x_d.flatten(1)
        values = torch.cat([x_s.expand_as(x_d).flatten(1), rest], dim=1)
        for index, rows in enumerate(self._layers(packed, sizes)):
            values = F.linear(values.relu() if index else values, rows[:-1].T, rows[-1])
        x_d = x_d + values[:, : 3 * KEYPOINTS].view_as(x_d)
        shift = values[:, 3 * KEYPOINTS :]
        return x_d + F.pad(shift, (0, 1))[:, None] if shift.shape[1] else x_d


def subjects(context: Context) -> Iterator[Subject]:
    """The three MLPs at each batch."""
    config = context.config.stitching_retargeting_module
    for batch in context.batches:
        for name, mlp in (("stitching", config.stitching), ("eye", config.eye), ("lip", config.lip)):
            yield _subject(context, name, mlp, batch)


def _subject(context: Context, name: str, mlp: MLPConfig, batch: int) -> Subject:
    sizes = [mlp.input_size, *mlp.hidden_sizes, mlp.output_size]
    ratios = [] if name == "stitching" else [OPENING] * (mlp.input_size - 3 * KEYPOINTS)

    def inputs(seed: int) -> tuple[Any, ...]:
        random = Random(seed, context.device)
        source, _ = random.keypoints(1)
        layers = [
            (random.normal(after, before, scale=(2 / before) ** 0.5), random.normal(after, scale=0.1))
            for before, after in pairwise(sizes)
        ]
        x_d = source + random.normal(batch, KEYPOINTS, 3, scale=0.05)
        return source, x_d, ops.pack_mlp(layers)[0], sizes, ratios

    return Subject(
        level="ops",
        name="stitch_mlp",
        shape=f"{name}, {' -> '.join(map(str, sizes))}",
        batch=batch,
        inputs=inputs,
        reference=lambda x_s, x_d, packed, of, given: ref.stitch_mlp(x_s, x_d, packed, of, given, None, 1.0),
        providers=single_precision("stitch_mlp", Published(), context.device),
        elements=packed_mlp_size(sizes),
        fixed_bytes=4 * 3 * KEYPOINTS * (1 + 2 * batch),
        flops=2 * batch * sum(before * after for before, after in pairwise(sizes)),
        kernel=True,
    )
