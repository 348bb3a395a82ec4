"""Calls of the ops that take weights whose products neighbouring rows share, with taps and with these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lpkernels import ops
from tests.ops.test_conv_act import Case as Conv
from tests.ops.test_conv_pool import make_inputs as pool_inputs
from tests.ops.test_conv_spade import Case as ConvNorm
from tests.ops.test_spade_blocks import Case as Blocks
from tests.ops.test_spade_conv import Case as Norm
from tests.ops.test_spade_conv import make_inputs as spade_inputs

WEIGHTS = {  # places of an op's weights, and the arrangements that it takes of each
    "conv_act": {1: (False, True)},
    "conv_pool": {1: (True,)},
    "spade_conv": {1: (False,)},
    "conv_spade": {1: (True,), 4: (False,)},
    "spade_blocks": {3: (True,), 5: (False,)},
}
NAMES = tuple(WEIGHTS)


def packed(name: str, inputs: list[Any], arrangement: int = 0) -> list[Any]:
    """The same call with its weights in an arrangement that the op takes, the first or another."""
    places, stacked = WEIGHTS[name], name == "spade_blocks"
    return [rows(v, places[i][arrangement], stacked) if i in places else v for i, v in enumerate(inputs)]


def rows(weight: Tensor, together: bool, stacked: bool) -> Tensor:
    steps = weight if stacked else weight[None]
    made = torch.stack([ops.pack_winograd_weight(step, together) for step in steps])
    return made if stacked else made[0]


CALLS = {
    "conv_act": [
        Conv((2, 5, 7, 16), 12, (3, 3), slope=0.2, residual="full", gain=True).inputs(),
        Conv((1, 6, 4, 80), 5, (3, 3), residual="half").inputs(),
        Conv((3, 1, 1, 64), 7, (3, 3)).inputs(),
        Conv((2, 3, 5, 4, 144), 9, (3, 3, 3), slope=0.0).inputs(),
        Conv((1, 2, 3, 2, 32), 8, (3, 3, 3), residual="full").inputs(),
    ],
    "conv_pool": [pool_inputs((2, 3, 4, 6, 16, 12)), pool_inputs((1, 1, 2, 2, 112, 3))],
    "spade_conv": [
        spade_inputs(Norm(2, 5, 3, 64, 32), torch.float32, "cpu"),
        spade_inputs(Norm(1, 4, 6, 48, 5, half=True), torch.float32, "cpu"),
        spade_inputs(Norm(3, 1, 2, 16, 7, beta=False), torch.float32, "cpu"),
    ],
    "conv_spade": [
        ConvNorm((2, 5, 7, 16), 48, 33).inputs(),
        ConvNorm((1, 4, 3, 80), 16, 5, residual=True).inputs(),
    ],
    "spade_blocks": [Blocks((2, 5, 7, 16), 48, 2).inputs(), Blocks((1, 3, 4, 80), 16, 5).inputs()],
}
