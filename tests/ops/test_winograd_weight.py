"""Weights whose products neighbouring rows share: their form, the ops that take it, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from lpkernels import _winograd, ops, ref, rewrites
from tests.ops import contract
from tests.ops.conv_inputs import exact, normal
from tests.ops.test_conv_act import Case, with_stats, with_stats_ref
from tests.ops.test_conv_pool import make_inputs as pool_inputs
from tests.ops.test_spade_conv import Case as Norm
from tests.ops.test_spade_conv import make_inputs as spade_inputs

HALF = torch.float16
NAMES = ("conv_act", "conv_pool", "spade_conv")


def packed(inputs: list[Any]) -> list[Any]:
    """The same call with its weight, the second argument, in the other form."""
    first, weight, *others = inputs
    return [first, ops.pack_winograd_weight(weight), *others]


CALLS = {
    "conv_act": [
        Case((2, 5, 7, 16), 12, (3, 3), slope=0.2, residual="full", gain=True).inputs(),
        Case((1, 6, 4, 80), 5, (3, 3), residual="half").inputs(),
        Case((3, 1, 1, 64), 7, (3, 3)).inputs(),
        Case((2, 3, 5, 4, 144), 9, (3, 3, 3), slope=0.0).inputs(),
        Case((1, 2, 3, 2, 32), 8, (3, 3, 3), residual="full").inputs(),
    ],
    "conv_pool": [pool_inputs((2, 3, 4, 6, 16, 12)), pool_inputs((1, 1, 2, 2, 112, 3))],
    "spade_conv": [
        spade_inputs(Norm(2, 5, 3, 64, 32), torch.float32, "cpu"),
        spade_inputs(Norm(1, 4, 6, 48, 5, half=True), torch.float32, "cpu"),
        spade_inputs(Norm(3, 1, 2, 16, 7, beta=False), torch.float32, "cpu"),
    ],
}
EACH = [pytest.param(name, inputs, id=f"{name}{i}") for name, calls in CALLS.items() for i, inputs in enumerate(calls)]


@pytest.mark.parametrize(("name", "inputs"), EACH)
def test_is_the_same_convolution(name: str, inputs: list[Any]) -> None:
    inputs = exact(inputs)
    reference = getattr(ref, name)
    assert contract.relative_error(reference(*packed(inputs)), reference(*inputs)) < 1e-13


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("name", "inputs"), EACH)
def test_the_op_takes_it(name: str, inputs: list[Any]) -> None:
    truth = getattr(ref, name)(*exact(inputs))
    with ops.use_backend("ref"):
        actual = getattr(ops, name)(*packed(inputs))
    assert contract.relative_error(actual, truth) < 3e-6


def test_statistics() -> None:
    inputs = CALLS["conv_act"][0]
    for actual, truth in zip(with_stats(*packed(inputs)), with_stats_ref(*exact(inputs)), strict=True):
        assert contract.relative_error(actual, truth) < 3e-6


@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str) -> None:
    op = getattr(ops, name)
    contract.check_compile(lambda *inputs: (op(*inputs),), packed(CALLS[name][0]))


@pytest.mark.parametrize(
    ("channels", "depth", "tiles"), [(16, 1, 4), (48, 1, 10), (64, 1, 12), (112, 3, 66), (128, 1, 24), (144, 3, 84)]
)
def test_holds_each_kernel_once(channels: int, depth: int, tiles: int) -> None:
    weight = torch.randn(3, *(3,) * (3 if depth == 3 else 2), channels, dtype=torch.float64)
    kernels = rewrites.winograd_kernels(weight, -3)
    actual = ops.pack_winograd_weight(weight)
    assert actual.shape == (3, tiles, 64)
    assert actual.is_contiguous()
    assert torch.equal(_winograd.kernels(actual, channels, volume=depth == 3), kernels)
    assert actual.abs().sum().isclose(kernels.abs().sum())  # the rest is zero


def test_the_order_of_tiles() -> None:
    """Two steps, of 64 channels and of 16: the first begins with taps, the second with half sums."""
    # A channel's number, 100 for every tap along w, 1000 for every kernel.
    kernels = torch.arange(4.0)[:, None, None] * 1000 + torch.arange(3.0)[:, None] * 100 + torch.arange(80.0)
    tiles = _winograd.tiles(kernels[None])[0]
    begins = [[int(tiles[tile, at]) for at in (0, 16, 32, 48)] for tile in range(16)]
    assert begins[0] == [2000, 3000, 2016, 3016]
    assert begins[1] == [2032, 3032, 2048, 3048]
    assert begins[5] == [2232, 3232, 2248, 3248]
    assert begins[6] == [0, 1000, 16, 1016]
    assert begins[11] == [232, 1232, 248, 1248]
    assert begins[12:] == [[64, 1064, 164, 1164], [264, 1264, 0, 0], [2064, 3064, 2164, 3164], [2264, 3264, 0, 0]]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends take this machine for one whose kernels run."""
    for name in NAMES:
        backends = ops.registry()[name].backends
        kernel = dataclasses.replace(backends["cuda"], why_not=lambda device_type: None)
        monkeypatch.setitem(backends, "cuda", kernel)


TAKEN = [
    ("conv_act", 64, 64, 1),
    ("conv_act", 256, 1536, 1),
    ("conv_act", 128, 64, 3),
    ("conv_act", 144, 144, 3),
    ("conv_pool", 112, 64, 3),
    ("conv_pool", 128, 64, 3),
    ("spade_conv", 128, 1024, 1),
    ("spade_conv", 64, 128, 1),
]
NOT_TAKEN = [
    ("conv_act", 144, 144, 1),
    ("conv_act", 96, 64, 1),
    ("conv_act", 64, 96, 1),
    ("conv_act", 60, 64, 1),
    ("conv_pool", 112, 128, 3),
    ("conv_pool", 128, 128, 3),
    ("conv_pool", 48, 64, 3),
    ("spade_conv", 64, 64, 1),
    ("spade_conv", 96, 128, 1),
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


@pytest.mark.parametrize("name", NAMES)
def test_backends_say_what_they_refuse(name: str) -> None:
    backends = ops.registry()[name].backends
    signature = signature_of(packed(CALLS[name][0]))
    for backend in ("triton", "torch"):
        assert backends[backend].refuses(signature) == "made for a weight of taps, got one of pack_winograd_weight"
        assert backends[backend].refuses(signature_of(CALLS[name][0])) is None
    assert backends["ref"].refuses(signature) is None


@pytest.mark.parametrize(
    ("name", "x", "weight", "message"),
    [
        ("conv_act", (1, 4, 4, 96), (64, 18, 64), "multiples of 64, or 144 of both in a volume; got .*float16, 96, 64"),
        ("conv_pool", (1, 1, 4, 4, 112), (96, 66, 64), "112 channels or a multiple of 64 and 64 outputs; .* 112, 96"),
        ("spade_conv", (1, 4, 4, 64), (64, 12, 64), "rows in multiples of 128, got 64"),
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


def bad(name: str, **changed: object) -> dict[str, Any]:
    """The arguments of an op's first call by name, and what makes it wrong."""
    named = ("actv", "weight", "bias", "x", "stats") if name == "spade_conv" else ("x", "weight", "bias")
    return {**dict(zip(named, packed(CALLS[name][0]), strict=False)), **changed}


BOTH_FORMS = r"weight must have shape \({}\) or, of pack_winograd_weight, \({}\), got \({}\)"


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        (
            "conv_act",
            {"weight": torch.zeros(12, 5, 64)},
            ValueError,
            BOTH_FORMS.format("O, kh, kw, 16", "O, 4, 64", "12, 5, 64"),
        ),
        (
            "conv_pool",
            {"weight": torch.zeros(12, 4, 64)},
            ValueError,
            BOTH_FORMS.format("O, 3, 3, 3, 16", "O, 12, 64", "12, 4, 64"),
        ),
        (
            "spade_conv",
            {"weight": torch.zeros(64, 12, 32)},
            ValueError,
            BOTH_FORMS.format("2C, 3, 3, 64", "2C, 12, 64", "64, 12, 32"),
        ),
        ("conv_act", {"x": torch.zeros(2, 5, 7, 8)}, ValueError, r"\(O, kh, kw, 8\), got 3 dimensions: \(12, 4, 64\)"),
        ("conv_act", {"weight": torch.zeros(0, 4, 64)}, ValueError, "no empty dimension"),
        ("conv_act", {"weight": torch.zeros(12, 4, 64).half()}, TypeError, "weight must have the dtype of x"),
        ("conv_act", {"weight": torch.zeros(4, 12, 64).transpose(0, 1)}, ValueError, "weight must be contiguous"),
        ("conv_act", {"weight": torch.zeros(192, 4, 64)}, ValueError, r"bias must have shape \(192\)"),  # no classes
        ("conv_pool", {"bias": torch.zeros(3)}, ValueError, r"bias must have shape \(12\)"),
        ("spade_conv", {"weight": torch.zeros(96, 12, 64)}, ValueError, r"weight must have 64 rows .* or 32"),
        ("spade_conv", {"weight": torch.zeros(1024, 12, 64)}, ValueError, r"weight must have 64 rows .* or 32"),
    ],
)
def test_bad_arguments_are_named(name: str, changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(ops, name)(**bad(name, **changed))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (normal(2, 3, 1, 16, seed=0), r"weight must have shape \(O, 3, 3, C\), got \(2, 3, 1, 16\)"),
        (normal(2, 1, 3, 3, 16, seed=0), r"weight must have shape \(O, 3, 3, 3, C\)"),
        (normal(2, 4, 64, seed=0), r"weight must have shape \(O, 3, 3, C\), got 3 dimensions"),
        (normal(2, 3, 3, 24, seed=0), r"channels in multiples of 16, got \(2, 3, 3, 24\)"),
    ],
)
def test_packing_refuses_what_does_not_fit(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.pack_winograd_weight(weight)
