"""depthwise_norm: every backend against a grouped conv2d and a layer norm in float64, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lpkernels import ops, ref
from lpkernels.models.convnextv2 import Block
from tests.ops import contract, convnext

SMALL = [(1, 3, 5, 16), (2, 9, 2, 24), (3, 1, 1, 7)]
HALVES = [torch.float16, torch.bfloat16]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    random, channels = convnext.Random(), shape[-1]
    tensors = [random.normal(*shape) + 1, random.normal(7, 7, channels, scale=0.2), random.normal(channels)]
    return convnext.lowered(tensors, (0, 1), dtype, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: tuple[int, ...], device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device)
    functions = convnext.tupled(ops.depthwise_norm), convnext.tupled(ref.depthwise_norm)
    contract.assert_close_to_reference(*functions, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
def test_triton_matches_reference(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float32)
    functions = convnext.tupled(ops.depthwise_norm), convnext.tupled(ref.depthwise_norm)
    with ops.use_backend("triton"):
        contract.assert_close_to_reference(*functions, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("run", [2, 4])
@pytest.mark.parametrize("width", [6, 3])
def test_triton_runs_of_pixels(run: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures are read in runs of two and four pixels, whose last may reach over the edge."""
    from lpkernels.triton import depthwise_norm

    monkeypatch.setattr(depthwise_norm, "RUNS", ((run, 0),))
    inputs = make_inputs((2, 5, width, 12), torch.float16)
    with ops.use_backend("triton"):
        convnext.check_half(ops.depthwise_norm, ref.depthwise_norm_in, inputs, torch.float16)


def test_reference_is_the_published_block() -> None:
    block = Block(12).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 12, 5, 9, dtype=torch.float64)
    expected = block.norm(block.dwconv(x).permute(0, 2, 3, 1))
    weight = block.dwconv.weight.squeeze(1).movedim(0, -1)
    actual = ref.depthwise_norm(x.permute(0, 2, 3, 1), weight, block.dwconv.bias)
    assert contract.relative_error(actual * block.norm.weight + block.norm.bias, expected) < 1e-12


def test_slice_of_a_wider_buffer(device: str) -> None:
    inputs = make_inputs((2, 3, 5, 16), torch.float32, device)
    buffer = inputs[0].new_full((2, 3, 5, 40), float("nan"))
    buffer[..., 8:24] = inputs[0]
    contract.assert_same([ops.depthwise_norm(buffer[..., 8:24], *inputs[1:])], [ops.depthwise_norm(*inputs)])


def test_opcheck_and_compile(device: str) -> None:
    contract.check_compile(convnext.tupled(ops.depthwise_norm), make_inputs((1, 3, 5, 8), torch.float32, device))


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 3, 2, 8), torch.float32)
    convnext.check_triton(ops.depthwise_norm, inputs, torch.ops.lpkernels.depthwise_norm_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*((1, *stage) for stage in convnext.STAGES), (3, 33, 21, 96), (2, 7, 9, 768)])
@pytest.mark.parametrize("dtype", HALVES)
def test_half_within_pytorchs_own_error(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype, "cuda")
    convnext.check_half(ops.depthwise_norm, ref.depthwise_norm_in, inputs, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", convnext.STAGES)
def test_repeatable_streams_and_graphs(stage: tuple[int, ...]) -> None:
    convnext.check_gpu(ops.depthwise_norm, make_inputs((1, *stage), torch.float16, "cuda"))


def test_gradients_are_refused() -> None:
    inputs = make_inputs((1, 3, 5, 8), torch.float32)
    convnext.check_gradient_is_refused(ops.depthwise_norm, inputs, "depthwise_norm")


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(("x", "weight", "bias"), make_inputs((1, 3, 5, 8), torch.float32), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=1), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(1, 3, 8)), ValueError, "x must have shape"),
        (bad(x=torch.zeros(1, 8, 3, 5).permute(0, 2, 3, 1)), ValueError, "x must be channels-last"),
        (bad(x=torch.zeros(1, 3, 5, 8).double()), TypeError, "x must have dtype"),
        (bad(weight=torch.zeros(8, 7, 7)), ValueError, r"weight must have shape \(7, 7, 8\)"),
        (bad(weight=torch.zeros(7, 7, 8).half()), TypeError, "weight must have the dtype of x"),
        (bad(bias=torch.zeros(7)), ValueError, r"bias must have shape \(8\)"),
        (bad(bias=torch.zeros(8).half()), TypeError, "bias must have dtype float32"),
        (bad(bias=torch.zeros(8, device="meta")), ValueError, "bias must be on the device of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.depthwise_norm(**arguments)
