"""upsample_conv: every backend against nearest upsampling and a convolution in float64, packing, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from lpkernels import errors, ops, ref, rewrites
from tests.host_data import NoHostData
from tests.ops import contract
from tests.ops.conv_inputs import (
    GPU_BACKENDS,
    HALVES,
    assert_untouched,
    assert_within_pytorchs_own_error,
    conv_weight,
    exact,
    normal,
    skip_reason,
    sliced,
)

SMALL = [  # shape of x, outputs, scale
    ((2, 3, 5, 8), 12, 2),
    ((1, 1, 1, 3), 1, 2),
    ((3, 2, 3, 8), 70, 4),
    ((2, 3, 2, 4, 8), 6, 2),
    ((1, 2, 3, 1, 8), 5, 4),
]
REAL = [
    ((1, 16, 2, 2, 1024), 512, 2),
    ((1, 16, 16, 16, 256), 64, 2),
    ((1, 16, 4, 4, 1024), 256, 2),
    ((3, 16, 8, 8, 512), 128, 2),
    ((1, 16, 32, 32, 128), 32, 2),
    ((1, 64, 64, 256), 256, 2),
    ((2, 64, 64, 256), 256, 4),
]
Shape = tuple[tuple[int, ...], int, int]


def make_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
    """x, packed weight, bias, negative_slope."""
    x, outputs, scale = shape
    weight = conv_weight(outputs, x[-1], *[3] * (len(x) - 2))
    packed = ops.pack_upsample_weight(weight, scale, multiple=1)
    bias = normal(outputs, seed=2).to(device)
    return [normal(*x, seed=0).to(device, dtype), packed.to(device, dtype), bias, 0.2]


def product_inputs(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
    """The same call with shared products: x, weight, bias, negative_slope, scale."""
    x, outputs, scale = shape
    weight = conv_weight(outputs, x[-1], *[3] * (len(x) - 2))
    packed = ops.pack_upsample_products(weight, multiple=1).to(device, dtype)
    inputs = make_inputs(shape, dtype, device)
    return [inputs[0], packed, *inputs[2:], scale]


def product_op(x: Tensor, weight: Tensor, bias: Tensor, slope: float, scale: int) -> tuple[Tensor]:
    return (ops.upsample_conv(x, weight, bias, slope, scale=scale),)


def upsample_op(*inputs: Any) -> tuple[Tensor]:
    return (ops.upsample_conv(*inputs),)


def upsample_ref(*inputs: Any) -> tuple[Tensor]:
    return (ref.upsample_conv(*inputs),)


def assert_matches(inputs: list[Any], bound: float = 3.0) -> None:
    actual, truth = ops.upsample_conv(*inputs), ref.upsample_conv(*exact(inputs))
    assert actual.shape == truth.shape
    assert contract.relative_error(actual, truth) < bound * contract.ULPS[actual.dtype]


@pytest.mark.parametrize("shape", SMALL)
def test_packed_phases_are_the_originals_formula(shape: Shape) -> None:
    size, outputs, scale = shape
    axes = len(size) - 2
    x, bias = normal(*size, seed=0).double(), normal(outputs, seed=2).double()
    weight = conv_weight(outputs, size[-1], *[3] * axes).double()
    large = F.interpolate(x.movedim(-1, 1), scale_factor=(1, scale, scale)[3 - axes :])
    expected = F.leaky_relu((F.conv3d if axes == 3 else F.conv2d)(large, weight, bias, padding=1), 0.2)
    padded = F.pad(x, (0, -size[-1] % 8))
    actual = ref.upsample_conv(padded, ops.pack_upsample_weight(weight, scale), bias, 0.2)
    torch.testing.assert_close(actual.movedim(-1, 1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("scale", "phases"), [(2, 4), (4, 9)])
def test_packing(scale: int, phases: int) -> None:
    weight = torch.randn(6, 11, 3, 3, 3)
    packed = ops.pack_upsample_weight(weight, scale)
    assert packed.shape == (phases, 6, 3, 2, 2, 16)
    assert packed.is_contiguous()
    assert packed[..., 11:].abs().sum() == 0
    last = rewrites.upsample_conv_phases(weight, scale, (False, True, True))[-1]
    assert torch.equal(packed[-1, ..., :11], last.weight.movedim(1, -1))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: Shape, device: str) -> None:
    assert_matches(make_inputs(shape, device=device))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_shared_products_are_the_same_convolution(shape: Shape, device: str) -> None:
    inputs = product_inputs(shape, device=device)
    with ops.use_backend("ref"), NoHostData():
        (actual,) = product_op(*inputs)
    expected = ref.upsample_conv(*exact(make_inputs(shape, device=device)))
    assert actual.shape == expected.shape
    assert contract.relative_error(actual, expected) < 1e-6


HOPPER = [
    *REAL,
    ((1, 16, 2, 2, 1024), 512, 4),
    ((2, 1, 1, 32), 32, 2),
    ((1, 3, 1, 16), 64, 4),
    ((1, 5, 7, 19, 48), 96, 2),
    ((2, 33, 18, 80), 32, 2),
    ((1, 17, 129, 128), 32, 4),
    ((1, 2, 64, 1, 64), 32, 2),
]


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", HOPPER)
def test_shared_products_within_pytorchs_own_error(shape: Shape) -> None:
    inputs = product_inputs(shape, torch.float16, "cuda")
    if reason := skip_reason("upsample_conv", "cuda", inputs):
        pytest.skip(reason)
    with ops.use_backend("cuda"):
        (actual,) = product_op(*inputs)
    plain = make_inputs(shape, torch.float16, "cuda")
    with ops.use_backend("torch"):
        own = ops.upsample_conv(*plain)
    truth = ref.upsample_conv(*exact([inputs[0], make_inputs(shape)[1].cuda(), *inputs[2:4]]))
    error, own_error = contract.relative_error(actual, truth), contract.relative_error(own, truth)
    assert error <= 1.5 * own_error + contract.ULPS[torch.float16], (error, own_error)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [HOPPER[0], HOPPER[4], HOPPER[-4]])
@pytest.mark.parametrize("before", [8, 24])
def test_shared_products_in_wider_buffers(shape: Shape, before: int) -> None:
    x, *rest, scale = product_inputs(shape, torch.float16, "cuda")
    if reason := skip_reason("upsample_conv", "cuda", [x, *rest]):
        pytest.skip(reason)
    expected = ops.upsample_conv(x, *rest, scale=scale)
    out, buffer = sliced(torch.full_like(expected, float("nan")), before)
    ops.upsample_conv(sliced(x, before)[0], *rest, out=out, scale=scale)
    assert_untouched(buffer, out)
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [HOPPER[0], HOPPER[7]])
def test_shared_products_repeat_and_are_captured(shape: Shape) -> None:
    inputs = product_inputs(shape, torch.float16, "cuda")
    if reason := skip_reason("upsample_conv", "cuda", inputs):
        pytest.skip(reason)
    contract.check_repeatable(product_op, inputs)
    *tensors, slope, scale = inputs
    contract.check_second_stream(lambda *late: product_op(*late, slope, scale), tensors)

    def change(values: contract.Inputs) -> None:
        values[0].mul_(-0.5)
        values[2].add_(1)

    contract.check_graph_capture(product_op, inputs, change)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
def test_triton_matches_reference(shape: Shape) -> None:
    with ops.use_backend("triton"):
        assert_matches(make_inputs(shape))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_in_half_precision(dtype: torch.dtype) -> None:
    with ops.use_backend("triton"):
        assert_matches(make_inputs(SMALL[3], dtype), bound=10)


@pytest.mark.usefixtures("interpreted")
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 20), st.sampled_from([2, 4]))
def test_triton_at_any_size(batch: int, height: int, width: int, outputs: int, scale: int) -> None:
    with ops.use_backend("triton"):
        assert_matches(make_inputs(((batch, height, width, 4), outputs, scale)))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("backend", ["triton", "ref"])
@pytest.mark.parametrize("shape", [SMALL[0], SMALL[3]])
def test_slices_of_wider_buffers(shape: Shape, backend: str) -> None:
    x, *rest = make_inputs(shape)
    with ops.use_backend(backend):
        expected = ops.upsample_conv(x, *rest)
        out, buffer = sliced(torch.full_like(expected, float("nan")), before=3)
        assert ops.upsample_conv(sliced(x)[0], *rest, out=out) is out
    assert_untouched(buffer, out)
    assert contract.relative_error(out, expected) < 1e-6


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("shape", [*SMALL, *REAL])
def test_half_within_pytorchs_own_error(shape: Shape, backend: str) -> None:
    inputs = make_inputs(shape, torch.float16, "cuda")
    if reason := skip_reason("upsample_conv", backend, inputs):
        pytest.skip(reason)
    assert_within_pytorchs_own_error(upsample_op, upsample_ref, inputs, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL)
@pytest.mark.parametrize("before", [8, 3])
def test_slices_on_the_gpu(shape: Shape, before: int) -> None:
    x, *rest = make_inputs(shape, torch.float16, "cuda")
    expected = ops.upsample_conv(x, *rest)
    out, buffer = sliced(torch.full_like(expected, float("nan")), before)
    ops.upsample_conv(sliced(x, before)[0], *rest, out=out)
    assert_untouched(buffer, out)
    assert contract.relative_error(out, expected) < 1e-3


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("shape", [SMALL[0], SMALL[4]])
def test_opcheck(shape: Shape) -> None:
    inputs = make_inputs(shape)
    contract.check_opcheck(torch.ops.lpkernels.upsample_conv_triton, [*inputs, ops.upsample_conv(*inputs)])


def test_compile(device: str) -> None:
    contract.check_compile(upsample_op, make_inputs(SMALL[0], device=device))


@pytest.mark.usefixtures("interpreted")
def test_compile_keeps_the_triton_op_whole() -> None:
    with ops.use_backend("triton"):
        contract.check_compile(upsample_op, make_inputs(SMALL[0]))


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(upsample_op, make_inputs(REAL[3], torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    *tensors, slope = make_inputs(REAL[3], torch.float16, "cuda")
    contract.check_second_stream(lambda *late: upsample_op(*late, slope), tensors)


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(upsample_op, make_inputs(REAL[3], torch.float16, "cuda"), change)


def test_gradients_are_refused() -> None:
    inputs = make_inputs(SMALL[0])
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="upsample_conv has no gradient"):
        ops.upsample_conv(*inputs)


def test_backends_say_what_they_refuse() -> None:
    backends = ops.registry()["upsample_conv"].backends
    x, bias, out = ((1, 4, 4, 16), torch.float16), ((33,), torch.float32), ((1, 8, 8, 33), torch.float16)
    phases, products = ((4, 33, 2, 2, 16), torch.float16), ((3, 3, 33, 16), torch.float16)
    assert "16, 33" in str(backends["cuda"].refuses((x, products, bias, out)))
    assert "got one of phases" in str(backends["cuda"].refuses((x, phases, bias, out)))
    assert "got one of shared products" in str(backends["triton"].refuses((x, products, bias, out)))
    assert backends["triton"].refuses((x, phases, bias, out)) is None
    with ops.use_backend("torch"), pytest.raises(errors.BackendError, match="on the CPU ref is the same convolution"):
        ops.upsample_conv(*make_inputs(SMALL[0]))


ZEROS = torch.zeros(2, 4, 4, 24)


def bad(**changed: object) -> dict[str, object]:
    right = {"x": ZEROS[..., :8], "weight": torch.zeros(4, 8, 2, 2, 8), "bias": torch.zeros(8)}
    return {**right, **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=[]), TypeError, "x must be a torch.Tensor, got list"),
        (bad(x=torch.zeros(4, 4, 8)), ValueError, r"x must have shape \(B, H, W, C\), got 3 dimensions"),
        (bad(x=torch.zeros(2, 8, 4, 4).movedim(1, 3)), ValueError, "x must be channels-last"),
        (bad(x=torch.zeros(2, 4, 4, 8).double()), TypeError, "x must have dtype float16, bfloat16, float32"),
        (bad(weight=torch.zeros(4, 8, 3, 2, 2, 8)), ValueError, r"weight must have shape \(P, O, 2, 2, 8\)"),
        (bad(weight=torch.zeros(5, 8, 2, 2, 8)), ValueError, r"weight must have 4 phases \(scale 2\) or 9"),
        (bad(weight=torch.zeros(4, 8, 2, 2, 8).half()), TypeError, "weight must have the dtype of x"),
        (bad(scale=4), ValueError, "scale must be 2 or None with 4 phases, got 4"),
        (bad(weight=torch.zeros(3, 3, 8, 8)), ValueError, "scale must be 2 or 4 with a weight of shared products"),
        (bad(weight=torch.zeros(9, 1, 8, 8), scale=2), ValueError, r"weight must have shape \(3, 3, O, 8\)"),
        (bad(bias=torch.zeros(7)), ValueError, r"bias must have shape \(8\)"),
        (bad(bias=torch.zeros(8, device="meta")), ValueError, "bias must be on the device of x"),
        (bad(out=torch.zeros(2, 4, 4, 8)), ValueError, r"out must have shape \(2, 8, 8, 8\)"),
        (bad(x=(flat := torch.zeros(1024))[:256].view(2, 4, 4, 8), out=flat.view(2, 8, 8, 8)), ValueError, "overlap x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.upsample_conv(**arguments)


def test_products_are_packed_where_their_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ops.shares_products("cpu", torch.float16, 16, 32)
    op = ops.registry()["upsample_conv"]
    monkeypatch.setitem(op.backends, "cuda", dataclasses.replace(op.backends["cuda"], why_not=lambda device_type: None))
    assert ops.shares_products("cuda", torch.float16, 16, 32)
    with ops.use_backend("cuda"):
        assert not ops.shares_products("cuda", torch.float32, 16, 32)
    with ops.use_backend("ref"):
        assert not ops.shares_products("cuda", torch.float16, 16, 32)


@pytest.mark.parametrize(
    ("weight", "scale", "message"),
    [
        (torch.zeros(2, 3, 5, 5), 2, r"weight must have shape \(O, C, 3, 3\)"),
        (torch.zeros(2, 3, 3, 3), 3, "scale must be 2 or 4, got 3"),
    ],
)
def test_pack_refuses(weight: Tensor, scale: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.pack_upsample_weight(weight, scale)
