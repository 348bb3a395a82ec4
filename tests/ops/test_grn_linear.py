"""grn_linear: every backend against the published response norm in float64, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref
from lpkernels.models.convnextv2 import GRN
from tests.ops import contract, convnext

SMALL = [
    (1, 3, 5, 16, 24),
    (2, 9, 2, 70, 8),
    (3, 1, 1, 5, 7),
    (1, 5, 15, 140, 33),
]  # batch, height, width, inputs, outputs
PUBLISHED = [(1, *stage[:2], 4 * stage[2], stage[2]) for stage in convnext.STAGES]
ODD = [(3, 33, 21, 384, 96), (2, 7, 9, 3072, 768), (1, 80, 80, 384, 96), (2, 3, 3, 1000, 104), (1, 1, 1, 8, 8)]
HALVES = [torch.float16, torch.bfloat16]
NAMES = ("x", "squares", "gamma", "weight", "bias", "residual")


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", blocks: int = 0) -> list[Tensor]:
    """Activations as GELU leaves them, and their squares in ``blocks`` rows, else as many as ``depthwise_linear``'s."""
    random, (batch, height, width, channels, outputs) = convnext.Random(), shape
    x = F.gelu(random.normal(batch, height, width, channels) * random.normal(channels).exp())
    rows = x.to(dtype).float().flatten(1, 2)
    block = -(-rows.shape[1] // (blocks or ref.tile_count(height, width, channels // 4)))
    squares = torch.stack([part.square().sum(1) for part in rows.split(block, dim=1)], dim=1)
    weight = random.normal(outputs, channels, scale=channels**-0.5)
    tensors = [x, squares, random.normal(channels), weight, random.normal(outputs)]
    return convnext.lowered([*tensors, random.normal(batch, height, width, outputs)], (0, 3, 5), dtype, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: tuple[int, ...], device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device)
    functions = convnext.tupled(ops.grn_linear), convnext.tupled(ref.grn_linear)
    contract.assert_close_to_reference(*functions, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    with ops.use_backend("triton"):
        convnext.check_half(ops.grn_linear, ref.grn_linear_in, inputs, dtype)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("blocks", [1, 5, 40])
def test_triton_adds_up_any_number_of_blocks(blocks: int) -> None:
    inputs = make_inputs((2, 8, 5, 24, 8), torch.float32, blocks=blocks)
    assert inputs[1].shape[1] == blocks
    with ops.use_backend("triton"):
        convnext.check_half(ops.grn_linear, ref.grn_linear_in, inputs, torch.float32)


def test_reference_is_the_published_norm() -> None:
    x, squares, gamma, weight, bias, residual = convnext.exact(make_inputs((2, 5, 4, 12, 6), torch.float32))
    norm = GRN(12).double()
    beta = torch.randn(12, dtype=torch.float64)
    norm.gamma.data, norm.beta.data = gamma.reshape(1, 1, 1, -1), beta.reshape(1, 1, 1, -1)
    expected = residual + F.linear(norm(x), weight, bias)
    actual = ref.grn_linear(x, x.square().sum((1, 2)).unsqueeze(1), gamma, weight, bias + weight @ beta, residual)
    assert contract.relative_error(actual, expected) < 1e-12
    assert contract.relative_error(squares.sum(1), x.square().sum((1, 2))) < 1e-6


@pytest.mark.usefixtures("poisoned")
def test_dead_channels_stay_finite(device: str) -> None:
    """A response of zero everywhere: the epsilon keeps 0 / 0 away."""
    x, squares, *rest = make_inputs((1, 3, 5, 16, 24), torch.float32, device)
    y = ops.grn_linear(torch.zeros_like(x), torch.zeros_like(squares), *rest)
    torch.testing.assert_close(y, rest[3] + rest[2])


def test_slice_as_residual(device: str) -> None:
    inputs = make_inputs((2, 3, 5, 16, 8), torch.float32, device)
    buffer = inputs[0].new_full((2, 3, 5, 24), float("nan"))
    buffer[..., 8:16] = inputs[5]
    contract.assert_same([ops.grn_linear(*inputs[:5], buffer[..., 8:16])], [ops.grn_linear(*inputs)])


def test_opcheck_and_compile(device: str) -> None:
    inputs = make_inputs((1, 3, 5, 16, 8), torch.float32, device)
    contract.check_compile(convnext.tupled(ops.grn_linear), inputs)


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 3, 2, 16, 8), torch.float32)
    convnext.check_triton(ops.grn_linear, inputs, torch.ops.lpkernels.grn_linear_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*PUBLISHED, *ODD])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_half_within_pytorchs_own_error(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    inputs = make_inputs(shape, dtype, "cuda")
    with convnext.only("grn_linear", backend, inputs):
        convnext.check_half(ops.grn_linear, ref.grn_linear_in, inputs, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*PUBLISHED, ODD[0]])
def test_repeatable_streams_and_graphs(shape: tuple[int, ...]) -> None:
    convnext.check_gpu(ops.grn_linear, make_inputs(shape, torch.float16, "cuda"))


@pytest.mark.gpu
def test_opcheck_of_the_cuda_kernel() -> None:
    inputs = make_inputs((2, 5, 9, 200, 56), torch.float16, "cuda")
    with convnext.only("grn_linear", "cuda", inputs):
        contract.check_opcheck(torch.ops.lpkernels.grn_linear, inputs)
        contract.check_compile(convnext.tupled(ops.grn_linear), inputs)


@pytest.mark.parametrize(("channels", "outputs"), [(12, 8), (8, 12), (3080, 8)])
def test_what_the_cuda_kernel_refuses(channels: int, outputs: int) -> None:
    refuses = ops.registry()["grn_linear"].backends["cuda"].refuses
    assert refuses(convnext.signature(make_inputs((1, 2, 2, 16, 16), torch.float16))) is None
    wrong = convnext.signature(make_inputs((1, 2, 2, channels, outputs), torch.float16))
    assert f"{channels}, {outputs}" in str(refuses(wrong))
    assert "bfloat16" in str(refuses(convnext.signature(make_inputs((1, 2, 2, 16, 16), torch.bfloat16))))


def test_gradients_are_refused() -> None:
    convnext.check_gradient_is_refused(ops.grn_linear, make_inputs(SMALL[0], torch.float32), "grn_linear")


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(NAMES, make_inputs((1, 3, 5, 16, 8), torch.float32), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=torch.zeros(3, 5, 16)), ValueError, "x must have shape"),
        (bad(squares=torch.zeros(1, 16)), ValueError, r"squares must have shape \(1, R, 16\)"),
        (bad(squares=torch.zeros(1, 1, 16).half()), TypeError, "squares must have dtype float32"),
        (bad(gamma=torch.zeros(8)), ValueError, r"gamma must have shape \(16\)"),
        (bad(weight=torch.zeros(8, 8)), ValueError, r"weight must have shape \(N, 16\)"),
        (bad(bias=torch.zeros(16)), ValueError, r"bias must have shape \(8\)"),
        (bad(residual=torch.zeros(1, 3, 5, 16)), ValueError, r"residual must have shape \(1, 3, 5, 8\)"),
        (bad(residual=torch.zeros(1, 3, 5, 8).half()), TypeError, "residual must have the dtype of x"),
        (bad(residual=torch.zeros(1, 3, 5, 8, device="meta")), ValueError, "residual must be on the device of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.grn_linear(**arguments)
