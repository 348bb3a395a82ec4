"""stitch_mlp: every backend against the float64 reference, the packed weights, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from lpkernels import ops, ref
from tests.ops import contract

PUBLISHED = {  # sizes, ratios known on the host, whether the wanted one is a tensor
    "stitching": ((126, 128, 128, 64, 65), 0, False),
    "eye": ((66, 256, 256, 128, 128, 64, 63), 2, True),
    "lip": ((65, 128, 128, 64, 63), 2, False),
}


def make_layers(sizes: tuple[int, ...], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases that keep the values' size."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(after, before, generator=generator) * (2 / before) ** 0.5,
            0.1 * torch.randn(after, generator=generator),
        )
        for before, after in pairwise(sizes)
    ]


def make_inputs(sizes: tuple[int, ...], batch: int, device: str, seed: int = 0, sources: int = 1) -> list[Tensor]:
    """x_s, x_d, packed weights, ratio."""
    generator = torch.Generator().manual_seed(seed)
    keypoints = sizes[-1] // 3
    x_s = 0.3 * torch.randn(sources, keypoints, 3, generator=generator)
    x_d = x_s + 0.05 * torch.randn(batch, keypoints, 3, generator=generator)
    ratio = torch.rand(sources, 1, generator=generator)
    return [tensor.to(device) for tensor in (x_s, x_d, ops.pack_mlp(make_layers(sizes, seed))[0], ratio)]


def of_sizes(
    function: Any, sizes: tuple[int, ...], ratios: int = 0, on_device: bool = False, multiplier: float = 0.7
) -> contract.Function:
    """``function`` of the four tensors."""

    def call(x_s: Tensor, x_d: Tensor, weights: Tensor, ratio: Tensor) -> tuple[Tensor]:
        constants = [0.3, 0.4, 0.1, 0.2][:ratios]
        return (function(x_s, x_d, weights, list(sizes), constants, ratio if on_device else None, multiplier),)

    return call


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


def check(inputs: list[Tensor], sizes: tuple[int, ...], *more: Any) -> None:
    op, truth = (of_sizes(function, sizes, *more) for function in (ops.stitch_mlp, ref.stitch_mlp))
    contract.assert_close_to_reference(op, truth, inputs, exact(inputs))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("multiplier", [1.0, 0.7])
@pytest.mark.parametrize(("batch", "sources"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_matches_reference(name: str, batch: int, sources: int, multiplier: float, device: str) -> None:
    sizes, ratios, on_device = PUBLISHED[name]
    check(make_inputs(sizes, batch, device, sources=sources), sizes, ratios, on_device, multiplier)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("sizes", "ratios", "on_device"),
    [
        ((6, 5), 0, False),
        ((12, 1, 8), 0, False),
        ((6, 512, 512, 3), 2, True),
        ((4, 7, 9, 11, 13, 15, 17, 19, 3), 0, True),
        ((511, 300, 512), 1, False),
    ],
)
def test_odd_sizes(sizes: tuple[int, ...], ratios: int, on_device: bool, device: str) -> None:
    keypoints = sizes[-1] // 3
    assert sizes[0] == 3 * keypoints + (ratios + on_device or 3 * keypoints)
    check(make_inputs(sizes, 2, device), sizes, ratios, on_device)


@pytest.mark.usefixtures("poisoned")
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 30),
    st.lists(st.integers(1, 40), max_size=4),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_any_shape(batch: int, keypoints: int, hidden: list[int], ratios: int, on_device: bool, seed: int) -> None:
    inputs = 3 * keypoints + (ratios + on_device or 3 * keypoints)
    sizes = (inputs, *hidden, 3 * keypoints + 2 * (seed % 2))
    check(make_inputs(sizes, batch, "cpu", seed, sources=batch), sizes, ratios, on_device)


def test_reference_is_the_networks_arithmetic() -> None:
    sizes = PUBLISHED["stitching"][0]
    x_s, x_d, _, _ = exact(make_inputs(sizes, 2, "cpu"))
    modules: list[nn.Module] = []
    for weight, bias in make_layers(sizes):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        linear.load_state_dict({"weight": weight, "bias": bias})
        modules += [linear, nn.ReLU()]
    x_s = x_s.expand_as(x_d)
    with torch.no_grad():
        delta = nn.Sequential(*modules[:-1])(torch.cat([x_s.flatten(1), x_d.flatten(1)], dim=1))
    expected = x_d + delta[:, :63].view(2, 21, 3)
    expected[..., :2] += delta[:, None, 63:]
    weights = ops.pack_mlp(make_layers(sizes))[0].double()
    actual = ref.stitch_mlp(x_s, x_d, weights, sizes, [], None, 2.0)
    assert contract.relative_error(actual, x_s + 2 * (expected - x_s)) < 1e-12


def test_reference_is_differentiable() -> None:
    sizes = (7, 4, 6)
    inputs = [tensor.requires_grad_() for tensor in exact(make_inputs(sizes, 1, "cpu"))]
    assert torch.autograd.gradcheck(of_sizes(ref.stitch_mlp, sizes, 0, True), inputs)


def test_packing() -> None:
    layers = make_layers((7, 5, 6))
    weights, sizes = ops.pack_mlp([(weight.double().requires_grad_(), bias) for weight, bias in layers])
    assert sizes == [7, 5, 6]
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    first, second = weights[: 8 * 8].view(8, 8), weights[64:].view(6, 8)
    assert torch.equal(first[:7, :5], layers[0][0].T)
    assert torch.equal(second[5, :6], layers[1][1])
    assert first[:, 5:].abs().sum() + second[:, 6:].abs().sum() == 0


def test_a_number_and_a_tensor_are_the_same_ratio(device: str) -> None:
    sizes = PUBLISHED["lip"][0]
    x_s, x_d, weights, _ = make_inputs(sizes, 3, device)
    by_number = ops.stitch_mlp(x_s, x_d, weights, sizes, [0.1, 0.5])
    by_tensor = ops.stitch_mlp(x_s, x_d, weights, sizes, [0.1], torch.full((3, 1), 0.5, device=device))
    assert torch.equal(by_number, by_tensor)


@pytest.mark.usefixtures("poisoned")
def test_strided_and_expanded_inputs(device: str) -> None:
    sizes, ratios, on_device = PUBLISHED["eye"]
    op = of_sizes(ops.stitch_mlp, sizes, ratios, on_device)
    x_s, x_d, weights, ratio = make_inputs(sizes, 3, device)
    expected = op(x_s, x_d, weights, ratio)
    loose = contract.strided(x_s.expand(3, -1, -1).contiguous()), contract.strided(x_d)
    contract.assert_same(op(*loose, torch.stack([weights, weights], 1)[:, 0], ratio.expand(3, 1)), expected)
    contract.assert_same(op(x_s, x_s.expand_as(x_d), weights, ratio), op(x_s, x_s.repeat(3, 1, 1), weights, ratio))


def test_values_that_are_not_finite_are_not_hidden(device: str) -> None:
    sizes = PUBLISHED["stitching"][0]
    x_s, x_d, weights, ratio = make_inputs(sizes, 2, device)
    x_d[0, 3] = float("nan")
    (x_new,) = of_sizes(ops.stitch_mlp, sizes)(x_s, x_d, weights, ratio)
    assert x_new[0].isnan().all()
    assert x_new[1].isfinite().all()


def test_opcheck(device: str) -> None:
    choice = ops.registry()["stitch_mlp"].choose(device)
    if choice.backend == "ref":
        pytest.skip(f"the op library has no kernel here: {choice.passed}")
    sizes = (8, 5, 6)
    x_s, x_d, weights, ratio = make_inputs(sizes, 2, device)
    packet = torch.ops.lpkernels.stitch_mlp
    contract.check_opcheck(packet, [x_s, x_d, weights, list(sizes), [0.3], ratio, 0.7])
    contract.check_opcheck(packet, [x_s, x_d, weights, list(sizes), [0.3, 0.2], None, 1.0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_compile(name: str, device: str) -> None:
    sizes, ratios, on_device = PUBLISHED[name]
    contract.check_compile(of_sizes(ops.stitch_mlp, sizes, ratios, on_device), make_inputs(sizes, 2, device))


def test_repeatable(device: str) -> None:
    sizes = PUBLISHED["stitching"][0]
    contract.check_repeatable(of_sizes(ops.stitch_mlp, sizes), make_inputs(sizes, 2, device))


@pytest.mark.gpu
def test_second_stream() -> None:
    sizes = PUBLISHED["stitching"][0]
    contract.check_second_stream(of_sizes(ops.stitch_mlp, sizes), make_inputs(sizes, 2, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PUBLISHED)
def test_graph_capture(name: str) -> None:
    sizes, ratios, on_device = PUBLISHED[name]

    def change(inputs: contract.Inputs) -> None:
        inputs[1].mul_(-0.5)
        inputs[3].add_(0.1)

    contract.check_graph_capture(
        of_sizes(ops.stitch_mlp, sizes, ratios, on_device), make_inputs(sizes, 2, "cuda"), change
    )


@pytest.mark.gpu
def test_second_device() -> None:
    sizes = PUBLISHED["stitching"][0]
    contract.check_second_device(of_sizes(ops.stitch_mlp, sizes), make_inputs(sizes, 2, "cpu"))


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs((6, 5), 1, device)
    inputs[2].requires_grad_()
    with pytest.raises(RuntimeError, match="stitch_mlp has no gradient"):
        of_sizes(ops.stitch_mlp, (6, 5))(*inputs)


def bad(**changed: object) -> dict[str, object]:
    x_s, x_d, weights, _ = make_inputs((6, 4, 5), 2, "cpu")
    return {"x_s": x_s, "x_d": x_d, "weights": weights, "sizes": [6, 4, 5], **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x_d=1), TypeError, "x_d must be a torch.Tensor, got int"),
        (bad(x_d=torch.zeros(2, 3)), ValueError, "x_d must have shape .*got 2 dimensions"),
        (bad(x_d=torch.zeros(0, 1, 3)), ValueError, "no empty dimension"),
        (bad(x_d=torch.zeros(2, 1, 3).half()), TypeError, "x_d must have dtype float32, got float16"),
        (bad(x_s=torch.zeros(3, 1, 3)), ValueError, r"x_s must have shape \(2, 1, 3\), got \(3, 1, 3\)"),
        (bad(x_s=torch.zeros(1, 2, 3)), ValueError, r"x_s must have shape \(1, 1, 3\)"),
        (bad(x_s=torch.zeros(1, 1, 3, device="meta")), ValueError, "x_s must be on the device of the driving motion"),
        (bad(weights=torch.zeros(9)), ValueError, r"weights must have shape \(68\), got \(9,\)"),
        (bad(weights=torch.zeros(68).double()), TypeError, "weights must have dtype float32, got float64"),
        (bad(weights=torch.zeros(68, device="meta")), ValueError, "weights must be on the device of x_d"),
        (bad(sizes=[6]), ValueError, "sizes must name 1 to 8 layers of 1 to 512 outputs"),
        (bad(sizes=[6, *[4] * 8, 5]), ValueError, "sizes must name 1 to 8 layers"),
        (bad(sizes=[6, 513, 5]), ValueError, "sizes must name 1 to 8 layers of 1 to 512 outputs"),
        (bad(sizes=[6, 4, 4]), ValueError, "sizes must lead from 6 to 3 or 5 for 1 keypoints and 0 ratios"),
        (bad(ratios=[0.3]), ValueError, "sizes must lead from 4 to 3 or 5 for 1 keypoints and 1 ratios"),
        (bad(ratios=[0.3] * 5), ValueError, "ratios must be at most 4, got 5"),
        (bad(ratio=0.5), TypeError, "ratio must be a torch.Tensor, got float"),
        (bad(ratio=torch.zeros(2)), ValueError, r"ratio must have shape \(2, 1\), got 1 dimensions"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.stitch_mlp(**arguments)


@pytest.mark.parametrize(
    "changed",
    [
        {"x_d": torch.zeros(2, 3)},
        {"x_s": torch.zeros(2, 2, 3)},
        {"x_s": torch.zeros(1, 1, 3).double()},
        {"weights": torch.zeros(67)},
        {"weights": torch.zeros(68).half()},
        {"weights": torch.zeros(68, 2)[:, 0]},
        {"sizes": [6, 5]},
        {"sizes": [6, 0, 5]},
        {"sizes": []},
        {"ratios": [0.1] * 5},
        {"ratio": torch.zeros(3, 1)},
    ],
)
def test_the_bare_op_checks_too(changed: dict[str, Any]) -> None:
    if ops.registry()["stitch_mlp"].choose("cpu").backend != "cpu":
        pytest.skip("the op library is not built")
    arguments = {**bad(ratios=[], ratio=None, multiplier=1.0), **changed}
    with pytest.raises(RuntimeError, match="stitch_mlp: "):
        torch.ops.lpkernels.stitch_mlp(*arguments.values())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([(torch.zeros(4, 6), torch.zeros(4)), (torch.zeros(5, 3), torch.zeros(5))], r"weight must have shape .*, 4\)"),
        ([(torch.zeros(4, 6), torch.zeros(5))], r"bias must have shape \(4\)"),
    ],
)
def test_packing_refuses_layers_that_do_not_fit(layers: list[tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.pack_mlp(layers)
