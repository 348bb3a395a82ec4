"""stitch_mlp as the original writes it: concatenation, linear layers with ReLU, the keypoints' update."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def stitch_mlp(
    x_s: Tensor,
    x_d: Tensor,
    weights: Tensor,
    sizes: Sequence[int],
    ratios: Sequence[float],
    ratio: Tensor | None,
    multiplier: float,
) -> Tensor:
    """New keypoints on packed weights; see ``lpkernels.ops.stitch_mlp``. Computes in the dtype of ``x_d``."""
    batch, keypoints = x_d.shape[:2]
    columns = [x_s.flatten(1)]
    if not ratios and ratio is None:
        columns.append(x_d.flatten(1))
    columns += [x_d.new_full((1, 1), value) for value in ratios]
    columns += [] if ratio is None else [ratio]
    values = torch.cat([column.expand(batch, -1) for column in columns], dim=1)
    begin = 0
    for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
        padded = -(-outputs // 4) * 4
        matrix = weights[begin : (begin := begin + (inputs + 1) * padded)].reshape(inputs + 1, padded)[:, :outputs]
        # Not a library's product, which TF32 or autocast would round.
        values = (values.relu() if layer else values).unsqueeze(-1).mul(matrix[:-1]).sum(dim=1) + matrix[-1]
    x = x_d + values[:, : 3 * keypoints].unflatten(1, (keypoints, 3))
    if sizes[-1] > 3 * keypoints:
        shift = values[:, 3 * keypoints :]
        x = x + torch.cat([shift, torch.zeros_like(shift[:, :1])], dim=1)[:, None, :]
    return x_s + (x - x_s) * multiplier
