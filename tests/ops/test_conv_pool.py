"""conv_pool: every backend against conv3d, ReLU and avg_pool3d in float64, slices, and what is refused."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from lpkernels import errors, ops, ref
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

SMALL = [(2, 3, 4, 6, 8, 12), (1, 1, 2, 2, 3, 1), (3, 2, 6, 10, 8, 70)]  # B, D, H, W, C, O
REAL = [(1, 16, 64, 64, 112, 64), (1, 16, 16, 16, 128, 256), (2, 16, 8, 8, 256, 512), (1, 16, 4, 4, 512, 1024)]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """x, weight, bias."""
    *x, outputs = shape
    weight = ops.pack_conv_weight(conv_weight(outputs, x[-1], 3, 3, 3), multiple=1)
    return [normal(*x, seed=0).to(device, dtype), weight.to(device, dtype), normal(outputs, seed=2).to(device)]


def pool_op(*inputs: Tensor) -> tuple[Tensor]:
    return (ops.conv_pool(*inputs),)


def pool_ref(*inputs: Tensor) -> tuple[Tensor]:
    return (ref.conv_pool(*inputs),)


def assert_matches(inputs: list[Tensor], bound: float = 3.0) -> None:
    actual, truth = ops.conv_pool(*inputs), ref.conv_pool(*exact(inputs))
    assert actual.shape == truth.shape
    assert contract.relative_error(actual, truth) < bound * contract.ULPS[actual.dtype]


def test_reference_is_the_originals_formula() -> None:
    x, weight, bias = exact(make_inputs(SMALL[0]))
    y = F.relu(F.conv3d(x.movedim(-1, 1).contiguous(), weight.movedim(-1, 1).contiguous(), bias, padding=1))
    expected = F.avg_pool3d(y, kernel_size=(1, 2, 2))
    assert contract.relative_error(ref.conv_pool(x, weight, bias).movedim(-1, 1), expected) < 1e-12


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: tuple[int, ...], device: str) -> None:
    assert_matches(make_inputs(shape, device=device))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
def test_triton_matches_reference(shape: tuple[int, ...]) -> None:
    with ops.use_backend("triton"):
        assert_matches(make_inputs(shape))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_in_half_precision(dtype: torch.dtype) -> None:
    with ops.use_backend("triton"):
        assert_matches(make_inputs(SMALL[0], dtype), bound=10)


@pytest.mark.usefixtures("interpreted")
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 20))
def test_triton_at_any_size(batch: int, depth: int, height: int, width: int, outputs: int) -> None:
    with ops.use_backend("triton"):
        assert_matches(make_inputs((batch, depth, 2 * height, 2 * width, 4, outputs)))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("backend", ["triton", "ref"])
def test_slices_of_wider_buffers(backend: str) -> None:
    x, weight, bias = make_inputs(SMALL[0])
    with ops.use_backend(backend):
        expected = ops.conv_pool(x, weight, bias)
        out, buffer = sliced(torch.full_like(expected, float("nan")), before=3)
        assert ops.conv_pool(sliced(x)[0], weight, bias, out=out) is out
    assert_untouched(buffer, out)
    assert contract.relative_error(out, expected) < 1e-6


@pytest.mark.usefixtures("interpreted")
def test_triton_keeps_nan() -> None:
    x, weight, bias = make_inputs(SMALL[0])
    x[0, 0, 0, 0, 0] = float("nan")
    with ops.use_backend("triton"):
        actual = ops.conv_pool(x, weight, bias)
    assert torch.equal(actual.isnan(), ref.conv_pool(x, weight, bias).isnan())


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("shape", [*SMALL, *REAL])
def test_half_within_pytorchs_own_error(shape: tuple[int, ...], backend: str) -> None:
    inputs = make_inputs(shape, torch.float16, "cuda")
    if reason := skip_reason("conv_pool", backend, inputs):
        pytest.skip(reason)
    assert_within_pytorchs_own_error(pool_op, pool_ref, inputs, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL)
def test_slices_on_the_gpu(shape: tuple[int, ...]) -> None:
    x, weight, bias = make_inputs(shape, torch.float16, "cuda")
    expected = ops.conv_pool(x, weight, bias)
    out, buffer = sliced(torch.full_like(expected, float("nan")))
    ops.conv_pool(sliced(x)[0], weight, bias, out=out)
    assert_untouched(buffer, out)
    assert contract.relative_error(out, expected) < 1e-3


@pytest.mark.usefixtures("interpreted")
def test_opcheck() -> None:
    inputs = make_inputs(SMALL[1])
    contract.check_opcheck(torch.ops.lpkernels.conv_pool_triton, [*inputs, ops.conv_pool(*inputs)])


def test_compile(device: str) -> None:
    contract.check_compile(pool_op, make_inputs(SMALL[0], device=device))


@pytest.mark.usefixtures("interpreted")
def test_compile_keeps_the_triton_op_whole() -> None:
    with ops.use_backend("triton"):
        contract.check_compile(pool_op, make_inputs(SMALL[0]))


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(pool_op, make_inputs(REAL[0], torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(pool_op, make_inputs(REAL[0], torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(pool_op, make_inputs(REAL[0], torch.float16, "cuda"), change)


def test_gradients_are_refused() -> None:
    inputs = make_inputs(SMALL[0])
    inputs[1].requires_grad_()
    with pytest.raises(RuntimeError, match="conv_pool has no gradient"):
        ops.conv_pool(*inputs)


def test_backends_say_what_they_refuse() -> None:
    with ops.use_backend("torch"), pytest.raises(errors.BackendError, match="on the CPU ref is the same convolution"):
        ops.conv_pool(*make_inputs(SMALL[0]))


ZEROS = torch.zeros(2, 3, 4, 4, 24)


def bad(**changed: object) -> dict[str, object]:
    right = {"x": ZEROS[..., :8], "weight": torch.zeros(8, 3, 3, 3, 8), "bias": torch.zeros(8)}
    return {**right, **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=None), TypeError, "x must be a torch.Tensor, got NoneType"),
        (bad(x=torch.zeros(2, 4, 4, 8)), ValueError, r"x must have shape \(B, D, H, W, C\), got 4 dimensions"),
        (bad(x=torch.zeros(2, 3, 5, 4, 8)), ValueError, "x must have an even H and W"),
        (bad(x=torch.zeros(2, 8, 3, 4, 4).movedim(1, 4)), ValueError, "x must be channels-last"),
        (bad(x=torch.zeros(2, 3, 4, 4, 8).double()), TypeError, "x must have dtype float16, bfloat16, float32"),
        (bad(weight=torch.zeros(8, 3, 3, 3, 9)), ValueError, r"weight must have shape \(O, 3, 3, 3, 8\)"),
        (bad(weight=torch.zeros(8, 3, 3, 3, 8).half()), TypeError, "weight must have the dtype of x"),
        (bad(bias=torch.zeros(7)), ValueError, r"bias must have shape \(8\)"),
        (bad(out=torch.zeros(2, 3, 4, 4, 8)), ValueError, r"out must have shape \(2, 3, 2, 2, 8\)"),
        (bad(out=ZEROS.view(-1)[:192].view(2, 3, 2, 2, 8)), ValueError, "out must not overlap x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.conv_pool(**arguments)
