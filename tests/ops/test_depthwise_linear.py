"""depthwise_linear: every backend against the published block in float64, the sums of squares, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref
from lpkernels.models.convnextv2 import Block
from tests.ops import contract, convnext

SMALL = [(1, 3, 5, 16, 24), (2, 9, 2, 8, 70), (3, 1, 1, 7, 5), (1, 5, 15, 40, 33)]  # batch, height, width, C, N
PUBLISHED = [(1, *stage, 4 * stage[2]) for stage in convnext.STAGES]
ODD = [(3, 33, 21, 96, 384), (2, 7, 9, 768, 3072), (1, 50, 49, 88, 136), (2, 13, 3, 200, 40), (1, 1, 1, 8, 8)]
HALVES = [torch.float16, torch.bfloat16]
NAMES = ("x", "taps", "taps_bias", "weight", "bias")


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    random, (*rest, channels, outputs) = convnext.Random(), shape
    weight = random.normal(outputs, channels, scale=1.5 * channels**-0.5)
    taps = [random.normal(7, 7, channels, scale=0.2), random.normal(channels)]
    return convnext.lowered(
        [random.normal(*rest, channels) + 1, *taps, weight, random.normal(outputs)], (0, 3), dtype, device
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: tuple[int, ...], device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device)
    contract.assert_close_to_reference(ops.depthwise_linear, ref.depthwise_linear, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    with ops.use_backend("triton"):
        convnext.check_half(ops.depthwise_linear, ref.depthwise_linear_in, inputs, dtype)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("run", [2, 4])
@pytest.mark.parametrize("width", [6, 3])
def test_triton_runs_of_pixels(run: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures are read in runs of two and four pixels, whose last may reach over the edge."""
    from lpkernels.triton import _depthwise_norm

    monkeypatch.setattr(_depthwise_norm, "RUNS", ((run, 0),))
    inputs = make_inputs((2, 5, width, 12, 8), torch.float16)
    with ops.use_backend("triton"):
        convnext.check_half(ops.depthwise_linear, ref.depthwise_linear_in, inputs, torch.float16)


@pytest.mark.usefixtures("poisoned", "interpreted")
def test_triton_gelu_is_exact() -> None:
    """Over the whole range, tails too: PyTorch's own float32 GELU is off by as much."""
    from lpkernels.triton._linear_gelu import linear_gelu

    x = torch.linspace(-12, 12, 4001).reshape(1, 1, -1, 1)
    h, _ = linear_gelu(x, torch.ones(1, 1), torch.zeros(1))
    assert (h - F.gelu(x.double())).abs().max() <= 1.5e-6


def test_reference_is_the_published_block() -> None:
    block = Block(12).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 12, 5, 9, dtype=torch.float64)
    expected = F.gelu(block.pwconv1(block.norm(block.dwconv(x).permute(0, 2, 3, 1))))
    taps = block.dwconv.weight.squeeze(1).movedim(0, -1)
    weight = block.pwconv1.weight * block.norm.weight
    bias = block.pwconv1.bias + block.pwconv1.weight @ block.norm.bias
    h, squares = ref.depthwise_linear(x.permute(0, 2, 3, 1), taps, block.dwconv.bias, weight, bias)
    assert contract.relative_error(h, expected) < 1e-12
    assert contract.relative_error(squares.sum(1), expected.square().sum((1, 2))) < 1e-12


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("height", "width", "rows"), [(1, 1, 4), (5, 9, 4), (8, 16, 4), (45, 46, 8), (31, 66, 4)])
def test_squares_are_of_tiles_of_pixels(height: int, width: int, rows: int, device: str) -> None:
    h, squares = ops.depthwise_linear(*make_inputs((2, height, width, 8, 3), torch.float32, device))
    tiles = [part for row in h.split(rows, dim=1) for part in row.split(8, dim=2)]
    assert squares.shape == (2, len(tiles), 3)
    for actual, part in zip(squares.unbind(1), tiles, strict=True):
        torch.testing.assert_close(actual, part.square().sum((1, 2)))


def test_many_channels_have_small_tiles() -> None:
    assert ref.tile_height(64, 64, 96) == 8
    assert ref.tile_height(64, 64, 104) == 4
    assert ref.tile_count(9, 9, 8) == 6


def test_squares_do_not_overflow() -> None:
    x, taps, taps_bias, weight, bias = make_inputs((1, 8, 8, 8, 8), torch.float16)
    h, squares = ops.depthwise_linear(x, taps, taps_bias, weight.fill_(10), bias.fill_(1000))
    assert h.float().square().max() > torch.finfo(torch.float16).max
    torch.testing.assert_close(squares.sum(1)[0], h.float().square().sum((0, 1, 2)), rtol=1e-3, atol=0)


def test_slice_of_a_wider_buffer(device: str) -> None:
    inputs = make_inputs((2, 3, 5, 16, 8), torch.float32, device)
    buffer = inputs[0].new_full((2, 3, 5, 40), float("nan"))
    buffer[..., 8:24] = inputs[0]
    contract.assert_same(ops.depthwise_linear(buffer[..., 8:24], *inputs[1:]), ops.depthwise_linear(*inputs))


def test_opcheck_and_compile(device: str) -> None:
    contract.check_compile(ops.depthwise_linear, make_inputs((1, 3, 5, 8, 16), torch.float32, device))


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 3, 2, 8, 16), torch.float32)
    convnext.check_triton(ops.depthwise_linear, inputs, torch.ops.lpkernels.depthwise_linear_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*PUBLISHED, *ODD])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_half_within_pytorchs_own_error(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    inputs = make_inputs(shape, dtype, "cuda")
    with convnext.only("depthwise_linear", backend, inputs):
        convnext.check_half(ops.depthwise_linear, ref.depthwise_linear_in, inputs, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*PUBLISHED, ODD[0]])
def test_repeatable_streams_and_graphs(shape: tuple[int, ...]) -> None:
    convnext.check_gpu(ops.depthwise_linear, make_inputs(shape, torch.float16, "cuda"))


@pytest.mark.gpu
def test_opcheck_of_the_cuda_kernel() -> None:
    inputs = make_inputs((2, 5, 9, 56, 200), torch.float16, "cuda")
    with convnext.only("depthwise_linear", "cuda", inputs):
        contract.check_opcheck(torch.ops.lpkernels.depthwise_linear, inputs)
        contract.check_compile(ops.depthwise_linear, inputs)


@pytest.mark.parametrize(("channels", "outputs"), [(12, 8), (8, 12), (776, 8)])
def test_what_the_cuda_kernel_refuses(channels: int, outputs: int) -> None:
    refuses = ops.registry()["depthwise_linear"].backends["cuda"].refuses
    assert refuses(convnext.signature(make_inputs((1, 2, 2, 16, 16), torch.float16))) is None
    wrong = convnext.signature(make_inputs((1, 2, 2, channels, outputs), torch.float16))
    assert f"{channels}, {outputs}" in str(refuses(wrong))
    assert "float32" in str(refuses(convnext.signature(make_inputs((1, 2, 2, 16, 16), torch.float32))))


def test_gradients_are_refused() -> None:
    convnext.check_gradient_is_refused(ops.depthwise_linear, make_inputs(SMALL[0], torch.float32), "depthwise_linear")


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(NAMES, make_inputs((1, 3, 5, 8, 16), torch.float32), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=1), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(1, 3, 8)), ValueError, "x must have shape"),
        (bad(x=torch.zeros(1, 3, 0, 8)), ValueError, "no empty dimension"),
        (bad(x=torch.zeros(1, 8, 3, 5).permute(0, 2, 3, 1)), ValueError, "x must be channels-last"),
        (bad(x=torch.zeros(1, 3, 5, 8).double()), TypeError, "x must have dtype"),
        (bad(taps=torch.zeros(8, 7, 7)), ValueError, r"taps must have shape \(7, 7, 8\)"),
        (bad(taps=torch.zeros(7, 7, 8).half()), TypeError, "taps must have dtype float32"),
        (bad(taps=torch.zeros(8, 7, 7).movedim(0, -1)), ValueError, "taps must be contiguous"),
        (bad(taps_bias=torch.zeros(7)), ValueError, r"taps_bias must have shape \(8\)"),
        (bad(taps_bias=torch.zeros(8, device="meta")), ValueError, "taps_bias must be on the device of x"),
        (bad(weight=None), TypeError, "weight must be a torch.Tensor"),
        (bad(weight=torch.zeros(16, 8).half()), TypeError, "weight must have the dtype of x"),
        (bad(weight=torch.zeros(16, 9)), ValueError, r"weight must have shape \(N, 8\)"),
        (bad(weight=torch.zeros(8, 16).T), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(8)), ValueError, r"bias must have shape \(16\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.depthwise_linear(**arguments)
