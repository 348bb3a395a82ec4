"""Weights whose products neighbouring rows share: where they are packed, and what backends refuse of them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lpkernels import ops
from tests.ops.test_conv_spade import Case as ConvNorm
from tests.ops.test_spade_blocks import Case as Blocks
from tests.ops.winograd_inputs import CALLS, NAMES, packed

HALF = torch.float16


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends take this machine for one whose kernels run."""
    for name in NAMES:
        backends = ops.registry()[name].backends
        kernel = dataclasses.replace(backends["cuda"], why_not=lambda device_type: None)
        monkeypatch.setitem(backends, "cuda", kernel)


TAKEN = [  # channels, outputs, depth, and hidden channels of the SPADE behind
    ("conv_act", 64, 64, 1),
    ("conv_act", 256, 1536, 1),
    ("conv_act", 192, 128, 1),
    ("conv_act", 128, 64, 3),
    ("conv_act", 144, 144, 3),
    ("conv_pool", 112, 64, 3),
    ("conv_pool", 128, 64, 3),
    ("spade_conv", 128, 1024, 1),
    ("spade_conv", 64, 128, 1),
    ("conv_spade", 256, 512, 1, 128),
    ("conv_spade", 64, 64, 1, 64),
    ("spade_blocks", 512, 512, 1, 128),
]
NOT_TAKEN = [
    ("conv_act", 144, 144, 1),
    ("conv_act", 96, 64, 1),
    ("conv_act", 64, 96, 1),
    ("conv_act", 60, 64, 1),
    ("conv_act", 64, 192, 1),
    ("conv_pool", 112, 128, 3),
    ("conv_pool", 128, 128, 3),
    ("conv_pool", 48, 64, 3),
    ("spade_conv", 64, 64, 1),
    ("spade_conv", 96, 128, 1),
    ("conv_spade", 80, 512, 1, 128),
    ("conv_spade", 256, 96, 1, 128),
    ("conv_spade", 256, 512, 1, 96),
    ("conv_spade", 256, 512, 1, 60),
    ("spade_blocks", 96, 96, 1, 128),
    ("spade_blocks", 512, 512, 1, 32),
]


@pytest.mark.usefixtures("hopper")
def test_it_is_packed_where_a_kernel_takes_it() -> None:
    with ops.use_backend("cuda", "ref"):
        for op, *sizes in TAKEN:
            assert ops.takes_winograd(op, "cuda", HALF, *sizes), (op, sizes)
            assert not ops.takes_winograd(op, "cuda", torch.float32, *sizes)
            assert not ops.takes_winograd(op, "cuda", torch.bfloat16, *sizes)
        for op, *sizes in NOT_TAKEN:
            assert not ops.takes_winograd(op, "cuda", HALF, *sizes), (op, sizes)
    with ops.use_backend("ref"):
        assert not ops.takes_winograd("conv_act", "cuda", HALF, 64, 64, 1)


def test_nothing_takes_it_on_a_cpu() -> None:
    assert not any(ops.takes_winograd(op, "cpu", HALF, *sizes) for op, *sizes in TAKEN)


def test_the_arrangement_that_a_kernel_wants() -> None:
    """The kernels of tiles of 64 outputs want products together."""
    assert ops.packs_together("conv_pool", 64)
    assert ops.packs_together("conv_spade", 512)
    assert ops.packs_together("spade_blocks", 512)
    assert [ops.packs_together("conv_act", outputs) for outputs in (64, 128, 144)] == [True, False, False]
    assert [ops.packs_together("spade_conv", outputs) for outputs in (64, 128)] == [False, False]


@pytest.mark.parametrize(("name", "arrangement"), [("conv_act", 1), *((name, 0) for name in NAMES)])
def test_backends_say_what_they_refuse(name: str, arrangement: int) -> None:
    backends = ops.registry()[name].backends
    signature = signature_of(packed(name, CALLS[name][0], arrangement))
    for backend in ("triton", "torch"):
        assert backends[backend].refuses(signature) == "made for a weight of taps, got one of pack_winograd_weight"
        assert backends[backend].refuses(signature_of(CALLS[name][0])) is None
    assert backends["ref"].refuses(signature) is None


@pytest.mark.parametrize(
    ("name", "x", "weight", "message"),
    [
        ("conv_act", (1, 4, 4, 96), (64, 18, 4, 16), "channels in multiples of 64 .*float16, 96, 64, together"),
        ("conv_act", (1, 4, 4, 64), (96, 12, 4, 16), r"outputs of 64 \(together\) .*float16, 64, 96, together"),
        ("conv_act", (1, 4, 4, 64), (64, 12, 64), r"or 128 \(kind by kind\).*float16, 64, 64, kind by kind"),
        ("conv_act", (1, 1, 4, 4, 144), (144, 81, 4, 16), "kind by kind for 144 of both in a volume; .*144, together"),
        ("conv_act", (1, 4, 4, 144), (144, 28, 64), "144 of both in a volume; got .*144, 144, kind by kind"),
        ("conv_pool", (1, 1, 4, 4, 112), (96, 63, 4, 16), "112 channels or a multiple of 64 and 64 outputs; .*112, 96"),
        ("spade_conv", (1, 4, 4, 64), (64, 12, 64), "gamma and beta, rows in multiples of 128; got 64 rows for 64"),
        ("spade_conv", (1, 4, 4, 64), (128, 12, 64), "gamma and beta, .*; got 128 rows for 128"),
    ],
)
def test_hopper_kernels_say_what_they_refuse(
    name: str, x: tuple[int, ...], weight: tuple[int, ...], message: str
) -> None:
    rows = weight[0]
    y = ((*x[:-1], rows), HALF)
    signature = ((x, HALF), (weight, HALF), ((rows,), torch.float32), y, ((1, rows, 2), torch.float32), y)
    reason = ops.registry()[name].backends["cuda"].refuses(signature)
    assert re.search(f"pack_winograd_weight.*{message}", str(reason))


@pytest.mark.parametrize(("channels", "hidden", "outputs"), [(80, 64, 64), (64, 48, 64), (64, 64, 96)])
def test_hopper_kernels_say_what_they_refuse_of_two_weights(channels: int, hidden: int, outputs: int) -> None:
    message = f"takes weights of pack_winograd_weight .* multiples of 64; got {{}}, {channels}, {hidden}, {outputs}"
    refuses = ops.registry()["conv_spade"].backends["cuda"].refuses
    inputs = ConvNorm((1, 4, 4, channels), hidden, outputs).inputs(HALF)
    assert re.search(message.format(HALF), str(refuses(signature_of(packed("conv_spade", inputs)))))
    if channels == outputs:
        blocks = Blocks((1, 4, 4, channels), hidden, 2).inputs(HALF)
        reason = ops.registry()["spade_blocks"].backends["cuda"].refuses(signature_of(packed("spade_blocks", blocks)))
        assert re.search(message.format(HALF), str(reason))


def test_hopper_kernels_take_two_weights_in_float16_alone() -> None:
    for dtype in (HALF, torch.bfloat16, torch.float32):
        calls = {
            "conv_spade": ConvNorm((1, 4, 4, 64), 64, 128).inputs(dtype),
            "spade_blocks": Blocks((1, 4, 4, 64), 64, 2).inputs(dtype),
        }
        for name, inputs in calls.items():
            reason = ops.registry()[name].backends["cuda"].refuses(signature_of(packed(name, inputs)))
            assert (reason is None) == (dtype == HALF), reason


def signature_of(inputs: list[Any]) -> Any:
    return tuple((tuple(value.shape), value.dtype) for value in inputs if isinstance(value, Tensor))


@pytest.mark.parametrize(
    ("height", "width", "parts"),
    [(64, 64, 16), (4, 128, 2), (128, 64, 32), (128, 128, None), (4, 64, None), (2, 256, None), (32, 32, None)],
)
def test_parts_that_the_hopper_kernel_leaves(height: int, width: int, parts: int | None) -> None:
    x, weight = ((1, height, width, 64), HALF), ((128, 12, 64), HALF)
    refuses = ops.registry()["conv_act"].backends["cuda"].refuses
    for count in (2, 16, 32, height * width // 128):
        stats = ((1, count, 128, 2), torch.float32)
        reason = refuses((x, weight, ((128,), torch.float32), ((1, height, width, 128), HALF), stats))
        assert (reason is None) == (count == parts), count
        assert reason is None or f"here {parts}; got {count}" in reason


@pytest.mark.usefixtures("hopper")
def test_parts_are_those_of_the_weights_form() -> None:
    x = torch.empty(1, 64, 64, 64, dtype=HALF, device="meta")
    assert (ops.stat_parts(x, 128), ops.stat_parts(x, 128, winograd=True)) == (32, 16)
