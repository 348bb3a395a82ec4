"""linear_gelu: every backend against linear and GELU in float64, the sums of squares, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref
from tests.ops import contract, convnext

SMALL = [
    (1, 3, 5, 16, 24),
    (2, 9, 2, 8, 70),
    (3, 1, 1, 7, 5),
    (1, 5, 15, 40, 33),
]  # batch, height, width, inputs, outputs
PUBLISHED = [(1, *stage, 4 * stage[2]) for stage in convnext.STAGES]
HALVES = [torch.float16, torch.bfloat16]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    random, (*rest, channels, outputs) = convnext.Random(), shape
    weight = random.normal(outputs, channels, scale=1.5 * channels**-0.5)
    tensors = [random.normal(*rest, channels), weight, random.normal(outputs)]
    return convnext.lowered(tensors, (0, 1), dtype, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: tuple[int, ...], device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device)
    contract.assert_close_to_reference(ops.linear_gelu, ref.linear_gelu, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    with ops.use_backend("triton"):
        convnext.check_half(ops.linear_gelu, ref.linear_gelu_in, inputs, dtype)


@pytest.mark.usefixtures("poisoned", "interpreted")
def test_triton_gelu_is_exact() -> None:
    """Over the whole range, tails too: PyTorch's own float32 GELU is off by as much."""
    x = torch.linspace(-12, 12, 4001).reshape(1, 1, -1, 1)
    with ops.use_backend("triton"):
        h, _ = ops.linear_gelu(x, torch.ones(1, 1), torch.zeros(1))
    assert (h - F.gelu(x.double())).abs().max() <= 1.5e-6


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pixels", [1, 16, 17, 64, 65, 512, 2049])
def test_squares_are_of_blocks_of_pixels(pixels: int, device: str) -> None:
    h, squares = ops.linear_gelu(*make_inputs((2, 1, pixels, 4, 3), torch.float32, device))
    block = ref.row_block(pixels)
    assert squares.shape == (2, -(-pixels // block), 3)
    for row, part in enumerate(h[:, 0].split(block, dim=1)):
        torch.testing.assert_close(squares[:, row], part.square().sum(1))


def test_squares_do_not_overflow() -> None:
    inputs = make_inputs((1, 8, 8, 8, 8), torch.float16)
    inputs[0].fill_(100)
    inputs[1].fill_(10)
    inputs[2].zero_()
    h, squares = ops.linear_gelu(*inputs)
    assert h.float().square().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(squares.sum(1)[0], h.float().square().sum((0, 1, 2)))


def test_opcheck_and_compile(device: str) -> None:
    contract.check_compile(ops.linear_gelu, make_inputs((1, 3, 5, 8, 16), torch.float32, device))


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 3, 2, 8, 16), torch.float32)
    convnext.check_triton(ops.linear_gelu, inputs, torch.ops.lpkernels.linear_gelu_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*PUBLISHED, (3, 33, 21, 96, 384), (2, 7, 9, 768, 3072)])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_within_pytorchs_own_error(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype, "cuda")
    convnext.check_half(ops.linear_gelu, ref.linear_gelu_in, inputs, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", PUBLISHED)
def test_repeatable_streams_and_graphs(shape: tuple[int, ...]) -> None:
    convnext.check_gpu(ops.linear_gelu, make_inputs(shape, torch.float16, "cuda"))


def test_gradients_are_refused() -> None:
    convnext.check_gradient_is_refused(ops.linear_gelu, make_inputs(SMALL[0], torch.float32), "linear_gelu")


def bad(**changed: object) -> dict[str, object]:
    inputs = make_inputs((1, 3, 5, 8, 16), torch.float32)
    return {**dict(zip(("x", "weight", "bias"), inputs, strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=torch.zeros(1, 3, 0, 8)), ValueError, "no empty dimension"),
        (bad(x=torch.zeros(1, 3, 5, 8).half()), TypeError, "weight must have the dtype of x"),
        (bad(weight=None), TypeError, "weight must be a torch.Tensor"),
        (bad(weight=torch.zeros(16, 9)), ValueError, r"weight must have shape \(N, 8\)"),
        (bad(weight=torch.zeros(8, 16).T), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(8)), ValueError, r"bias must have shape \(16\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.linear_gelu(**arguments)
