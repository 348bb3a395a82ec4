"""Weights whose products neighbouring rows share: their two arrangements, and the ops that take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lpkernels import _winograd, ops, ref, rewrites
from tests.host_data import NoHostData
from tests.ops import contract
from tests.ops.conv_inputs import exact, normal
from tests.ops.test_conv_act import with_stats, with_stats_ref
from tests.ops.test_conv_spade import with_y
from tests.ops.winograd_inputs import CALLS, NAMES, WEIGHTS, packed

EACH = [
    pytest.param(name, inputs, arrangement, id=f"{name}{i}, {arrangement}")
    for name, calls in CALLS.items()
    for i, inputs in enumerate(calls)
    for arrangement in range(len(next(iter(WEIGHTS[name].values()))))
]


def answers(came: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (came,) if isinstance(came, Tensor) else came


@pytest.mark.parametrize(("name", "inputs", "arrangement"), EACH)
def test_is_the_same_convolution(name: str, inputs: list[Any], arrangement: int) -> None:
    inputs = exact(inputs)
    reference = getattr(ref, name)
    same = packed(name, inputs, arrangement)
    for actual, truth in zip(answers(reference(*same)), answers(reference(*inputs)), strict=True):
        assert contract.relative_error(actual, truth) < 1e-13


def run(name: str) -> Any:
    """The op with all that its reference answers with."""
    return with_y if name == "conv_spade" else getattr(ops, name)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("name", "inputs", "arrangement"), EACH)
def test_the_op_takes_it(name: str, inputs: list[Any], arrangement: int) -> None:
    truths = answers(getattr(ref, name)(*exact(inputs)))
    with ops.use_backend("ref"), NoHostData():
        actuals = answers(run(name)(*packed(name, inputs, arrangement)))
    for actual, truth in zip(actuals, truths, strict=True):
        assert contract.relative_error(actual, truth) < 3e-6


@pytest.mark.parametrize("arrangement", [0, 1])
def test_statistics(arrangement: int) -> None:
    inputs = CALLS["conv_act"][0]
    actuals = with_stats(*packed("conv_act", inputs, arrangement))
    for actual, truth in zip(actuals, with_stats_ref(*exact(inputs)), strict=True):
        assert contract.relative_error(actual, truth) < 3e-6


@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str) -> None:
    op, inputs = run(name), packed(name, CALLS[name][0])
    tensors = [value for value in inputs if isinstance(value, Tensor)]

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        left = iter(given)
        return answers(op(*(next(left) if isinstance(value, Tensor) else value for value in inputs)))

    contract.check_compile(call, tensors)


@pytest.mark.parametrize(
    ("channels", "depth", "tiles", "together"),
    [(16, 1, 4, 3), (48, 1, 10, 9), (64, 1, 12, 12), (112, 3, 66, 63), (128, 1, 24, 24), (144, 3, 84, 81)],
)
def test_holds_each_kernel_once(channels: int, depth: int, tiles: int, together: int) -> None:
    weight = torch.randn(3, *(3,) * (3 if depth == 3 else 2), channels, dtype=torch.float64)
    kernels = rewrites.winograd_kernels(weight, -3)
    for arrangement, shape in ((False, (3, tiles, 64)), (True, (3, together, 4, 16))):
        actual = ops.pack_winograd_weight(weight, arrangement)
        assert actual.shape == shape
        assert actual.is_contiguous()
        assert torch.equal(_winograd.kernels(actual, channels, volume=depth == 3), kernels)
        assert actual.abs().sum().isclose(kernels.abs().sum())  # the rest is zero


def test_the_order_of_tiles() -> None:
    """Two steps, of 64 channels and of 16: the first begins with taps, the second with half sums."""
    tiles = _winograd.tiles(numbered(), together=False)[0]
    begins = [[int(tiles[tile, at]) for at in (0, 16, 32, 48)] for tile in range(16)]
    assert begins[0] == [2000, 3000, 2016, 3016]
    assert begins[1] == [2032, 3032, 2048, 3048]
    assert begins[5] == [2232, 3232, 2248, 3248]
    assert begins[6] == [0, 1000, 16, 1016]
    assert begins[11] == [232, 1232, 248, 1248]
    assert begins[12:] == [[64, 1064, 164, 1164], [264, 1264, 0, 0], [2064, 3064, 2164, 3164], [2264, 3264, 0, 0]]


def numbered() -> Tensor:
    """Kernels of one output: a channel's number, 100 for every tap along w, 1000 for every kernel."""
    return (torch.arange(4.0)[:, None, None] * 1000 + torch.arange(3.0)[:, None] * 100 + torch.arange(80.0))[None]


def test_the_order_of_tiles_together() -> None:
    """The same two steps: taps before half sums in every tile."""
    tiles = _winograd.tiles(numbered(), together=True)[0]
    assert tiles.shape == (15, 4, 16)
    begins = tiles[:, :, 0].int().tolist()
    assert begins[:2] == [[2000, 3000, 0, 1000], [2016, 3016, 16, 1016]]
    assert begins[4] == [2100, 3100, 100, 1100]
    assert begins[11:13] == [[2248, 3248, 248, 1248], [2064, 3064, 64, 1064]]
    assert begins[14] == [2264, 3264, 264, 1264]
    assert tiles[1, 0].int().tolist() == list(range(2016, 2032))


def bad(name: str, **changed: object) -> dict[str, Any]:
    """The arguments of an op's first call by name, and what makes it wrong."""
    spade = ("spade_weight", "spade_bias", "negative_slope")
    named: dict[str, tuple[str, ...]] = {
        "spade_conv": ("actv", "weight", "bias", "x", "stats"),
        "conv_spade": ("x", "weight", "bias", "actv", *spade),
        "spade_blocks": ("x", "dx", "actv", "weight", "bias", *spade),
    }
    given = packed(name, CALLS[name][0], arrangement=0)
    return {**dict(zip(named.get(name, ("x", "weight", "bias")), given, strict=False)), **changed}


FORMS = r"weight must have shape \({}\) or, of pack_winograd_weight, \({}\), got \({}\)"
TWO_FORMS = "weight and spade_weight must both have taps or both be of pack_winograd_weight"


@pytest.mark.parametrize(
    ("name", "changed", "error", "message"),
    [
        (
            "conv_act",
            {"weight": torch.zeros(12, 5, 64)},
            ValueError,
            FORMS.format("O, kh, kw, 16", r"O, 4, 64\) or \(O, 3, 4, 16", "12, 5, 64"),
        ),
        (
            "conv_act",
            {"weight": torch.zeros(12, 4, 4, 16)},
            ValueError,
            FORMS.format("O, kh, kw, 16", r"O, 4, 64\) or \(O, 3, 4, 16", "12, 4, 4, 16"),
        ),
        (
            "conv_pool",
            {"weight": torch.zeros(12, 12, 64)},
            ValueError,
            FORMS.format("O, 3, 3, 3, 16", "O, 9, 4, 16", "12, 12, 64"),
        ),
        (
            "conv_pool",
            {"weight": torch.zeros(12, 3, 4, 16)},
            ValueError,
            FORMS.format("O, 3, 3, 3, 16", "O, 9, 4, 16", "12, 3, 4, 16"),
        ),
        (
            "spade_conv",
            {"weight": torch.zeros(64, 12, 32)},
            ValueError,
            FORMS.format("2C, 3, 3, 64", "2C, 12, 64", "64, 12, 32"),
        ),
        (
            "spade_conv",
            {"weight": torch.zeros(64, 12, 4, 16)},
            ValueError,
            FORMS.format("2C, 3, 3, 64", "2C, 12, 64", "64, 12, 4, 16"),
        ),
        (
            "conv_spade",
            {"weight": torch.zeros(33, 4, 64)},
            ValueError,
            FORMS.format("O, 3, 3, 16", "O, 3, 4, 16", "33, 4, 64"),
        ),
        (
            "conv_spade",
            {"spade_weight": torch.zeros(66, 9, 4, 16)},
            ValueError,
            "spade_" + FORMS.format("66, 3, 3, 48", "66, 10, 64", "66, 9, 4, 16"),
        ),
        (
            "conv_spade",
            {"spade_weight": torch.zeros(64, 10, 64)},
            ValueError,
            r"spade_weight must have .*\(66, 10, 64\)",
        ),
        ("conv_spade", {"weight": torch.zeros(33, 3, 3, 16)}, ValueError, TWO_FORMS),
        (
            "conv_spade",
            {"spade_weight": torch.zeros(66, 3, 3, 48)},
            ValueError,
            TWO_FORMS + r", got \(33, 3, 4, 16\) and \(66, 3, 3, 48\)",
        ),
        (
            "spade_blocks",
            {"weight": torch.zeros(2, 16, 4, 64)},
            ValueError,
            FORMS.format("S, 16, 3, 3, 16", "S, 16, 3, 4, 16", "2, 16, 4, 64"),
        ),
        (
            "spade_blocks",
            {"spade_weight": torch.zeros(2, 32, 9, 4, 16)},
            ValueError,
            "spade_" + FORMS.format("2, 32, 3, 3, 48", "2, 32, 10, 64", "2, 32, 9, 4, 16"),
        ),
        ("spade_blocks", {"spade_weight": torch.zeros(3, 32, 10, 64)}, ValueError, r"spade_weight .*\(2, 32, 10, 64\)"),
        ("spade_blocks", {"weight": torch.zeros(1, 16, 3, 4, 16)}, ValueError, "must hold 2 steps or more, got 1"),
        ("spade_blocks", {"weight": torch.zeros(2, 16, 3, 3, 16)}, ValueError, TWO_FORMS),
        ("spade_blocks", {"spade_weight": torch.zeros(2, 32, 3, 3, 48)}, ValueError, TWO_FORMS),
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
