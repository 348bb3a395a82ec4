"""pool_norm_linear: every backend against mean, layer norm and linear in float64, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref
from tests.ops import contract, convnext

SMALL = [
    (1, 3, 5, 16, 9),
    (2, 9, 2, 70, 8),
    (3, 1, 1, 7, 1),
    (1, 5, 9, 130, 33),
]  # batch, height, width, inputs, outputs
FUNCTIONS = convnext.tupled(ops.pool_norm_linear), convnext.tupled(ref.pool_norm_linear)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    random, (*rest, channels, outputs) = convnext.Random(), shape
    weight = random.normal(outputs, channels, scale=channels**-0.5)
    x = random.normal(*rest, channels) + random.normal(channels) + 1
    return convnext.lowered([x, weight, random.normal(outputs)], (0,), dtype, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    inputs = make_inputs(shape, dtype, device)
    contract.assert_close_to_reference(*FUNCTIONS, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    with ops.use_backend("triton"):
        contract.assert_close_to_reference(*FUNCTIONS, inputs, convnext.exact(inputs))


def test_reference_is_the_published_end() -> None:
    x, weight, bias = convnext.exact(make_inputs(SMALL[0], torch.float32))
    gamma, beta = torch.randn(2, 16, dtype=torch.float64)
    expected = F.linear(F.layer_norm(x.mean((1, 2)), (16,), gamma, beta, 1e-6), weight, bias)
    actual = ref.pool_norm_linear(x, weight * gamma, bias + weight @ beta)
    assert contract.relative_error(actual, expected) < 1e-12


def test_opcheck_and_compile(device: str) -> None:
    contract.check_compile(FUNCTIONS[0], make_inputs((1, 3, 5, 8, 16), torch.float32, device))


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 3, 5, 8, 16), torch.float32)
    convnext.check_triton(ops.pool_norm_linear, inputs, torch.ops.lpkernels.pool_norm_linear_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 8, 8, 768, 328), (3, 16, 17, 768, 328)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_published_shapes(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    inputs = make_inputs(shape, dtype, "cuda")
    with convnext.only("pool_norm_linear", backend, inputs):
        contract.assert_close_to_reference(*FUNCTIONS, inputs, convnext.exact(inputs))


@pytest.mark.gpu
def test_repeatable_streams_and_graphs() -> None:
    convnext.check_gpu(ops.pool_norm_linear, make_inputs((1, 8, 8, 768, 328), torch.float16, "cuda"), change=1)


@pytest.mark.gpu
def test_opcheck_of_the_cuda_kernel() -> None:
    inputs = make_inputs((2, 5, 9, 200, 131), torch.float16, "cuda")
    with convnext.only("pool_norm_linear", "cuda", inputs):
        contract.check_opcheck(torch.ops.lpkernels.pool_norm_linear, inputs)
        contract.check_compile(FUNCTIONS[0], inputs)


def test_what_the_cuda_kernel_refuses() -> None:
    refuses = ops.registry()["pool_norm_linear"].backends["cuda"].refuses
    assert refuses(convnext.signature(make_inputs((1, 2, 2, 768, 13), torch.float16))) is None
    for channels in (12, 776):
        wrong = convnext.signature(make_inputs((1, 2, 2, channels, 13), torch.float16))
        assert f"{channels}, 13" in str(refuses(wrong))
    assert "bfloat16" in str(refuses(convnext.signature(make_inputs((1, 2, 2, 16, 16), torch.bfloat16))))


def test_gradients_are_refused() -> None:
    convnext.check_gradient_is_refused(ops.pool_norm_linear, make_inputs(SMALL[0], torch.float32), "pool_norm_linear")


def bad(**changed: object) -> dict[str, object]:
    inputs = make_inputs((1, 3, 5, 8, 16), torch.float32)
    return {**dict(zip(("x", "weight", "bias"), inputs, strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=torch.zeros(1, 3, 8)), ValueError, "x must have shape"),
        (bad(weight=torch.zeros(16, 9)), ValueError, r"weight must have shape \(N, 8\)"),
        (bad(weight=torch.zeros(16, 8).half()), TypeError, "weight must have dtype float32"),
        (bad(bias=torch.zeros(8)), ValueError, r"bias must have shape \(16\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.pool_norm_linear(**arguments)
