"""norm_downsample: every backend against layer norm and conv2d in float64, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lpkernels import ops, ref
from lpkernels.models.convnextv2 import LayerNorm
from tests.ops import contract, convnext

SMALL = [
    (1, 4, 6, 16, 24),
    (2, 9, 2, 70, 8),
    (3, 2, 3, 7, 5),
    (1, 6, 11, 130, 33),
]  # batch, height, width, inputs, outputs
PUBLISHED = [(1, *stage, 2 * stage[2]) for stage in convnext.STAGES[:3]]
HALVES = [torch.float16, torch.bfloat16]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", mean: float = 1.0) -> list[Tensor]:
    random, (*rest, channels, outputs) = convnext.Random(), shape
    weight = random.normal(outputs, 2, 2, channels, scale=0.5 * channels**-0.5)
    tensors = [random.normal(*rest, channels) + mean, weight, random.normal(outputs)]
    return convnext.lowered(tensors, (0, 1), dtype, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: tuple[int, ...], device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device)
    functions = convnext.tupled(ops.norm_downsample), convnext.tupled(ref.norm_downsample)
    contract.assert_close_to_reference(*functions, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype)
    with ops.use_backend("triton"):
        convnext.check_half(ops.norm_downsample, ref.norm_downsample_in, inputs, dtype)


@pytest.mark.usefixtures("poisoned", "interpreted")
def test_triton_is_stable_where_the_mean_is_large() -> None:
    inputs = make_inputs((1, 4, 4, 130, 8), torch.float32, mean=300.0)
    with ops.use_backend("triton"):
        convnext.check_half(ops.norm_downsample, ref.norm_downsample_in, inputs, torch.float32)


def test_reference_is_the_published_step() -> None:
    norm, conv = LayerNorm(12, channels_first=True).double(), nn.Conv2d(12, 20, 2, 2).double()
    x = torch.randn(2, 12, 7, 9, dtype=torch.float64)
    actual = ref.norm_downsample(x.permute(0, 2, 3, 1), conv.weight.permute(0, 2, 3, 1), conv.bias)
    assert contract.relative_error(actual.permute(0, 3, 1, 2), conv(norm(x))) < 1e-12


def test_slice_of_a_wider_buffer(device: str) -> None:
    inputs = make_inputs((2, 4, 6, 16, 8), torch.float32, device)
    buffer = inputs[0].new_full((2, 4, 6, 40), float("nan"))
    buffer[..., 8:24] = inputs[0]
    contract.assert_same([ops.norm_downsample(buffer[..., 8:24], *inputs[1:])], [ops.norm_downsample(*inputs)])


def test_opcheck_and_compile(device: str) -> None:
    inputs = make_inputs((1, 4, 5, 8, 16), torch.float32, device)
    contract.check_compile(convnext.tupled(ops.norm_downsample), inputs)


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 4, 5, 8, 16), torch.float32)
    convnext.check_triton(ops.norm_downsample, inputs, torch.ops.lpkernels.norm_downsample_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*PUBLISHED, (3, 33, 21, 96, 192), (8, 64, 64, 96, 192), (2, 7, 9, 384, 768)])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_half_within_pytorchs_own_error(shape: tuple[int, ...], dtype: torch.dtype, backend: str) -> None:
    inputs = make_inputs(shape, dtype, "cuda")
    with convnext.only("norm_downsample", backend, inputs):
        convnext.check_half(ops.norm_downsample, ref.norm_downsample_in, inputs, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", PUBLISHED)
def test_repeatable_streams_and_graphs(shape: tuple[int, ...]) -> None:
    convnext.check_gpu(ops.norm_downsample, make_inputs(shape, torch.float16, "cuda"), change=1)


@pytest.mark.gpu
def test_opcheck_of_the_cuda_kernel() -> None:
    inputs = make_inputs((2, 5, 9, 200, 56), torch.float16, "cuda")
    with convnext.only("norm_downsample", "cuda", inputs):
        contract.check_opcheck(torch.ops.lpkernels.norm_downsample, inputs)
        contract.check_compile(convnext.tupled(ops.norm_downsample), inputs)


@pytest.mark.parametrize(("channels", "outputs"), [(12, 8), (8, 12), (392, 8)])
def test_what_the_cuda_kernel_refuses(channels: int, outputs: int) -> None:
    refuses = ops.registry()["norm_downsample"].backends["cuda"].refuses
    assert refuses(convnext.signature(make_inputs((1, 2, 2, 384, 16), torch.float16))) is None
    wrong = convnext.signature(make_inputs((1, 2, 2, channels, outputs), torch.float16))
    assert f"{channels}, {outputs}" in str(refuses(wrong))
    assert "bfloat16" in str(refuses(convnext.signature(make_inputs((1, 2, 2, 16, 16), torch.bfloat16))))


def test_gradients_are_refused() -> None:
    convnext.check_gradient_is_refused(ops.norm_downsample, make_inputs(SMALL[0], torch.float32), "norm_downsample")


def bad(**changed: object) -> dict[str, object]:
    inputs = make_inputs((1, 4, 6, 8, 16), torch.float32)
    return {**dict(zip(("x", "weight", "bias"), inputs, strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=torch.zeros(1, 1, 6, 8)), ValueError, "x must be at least 2 pixels high and wide"),
        (bad(x=torch.zeros(1, 4, 6, 8).int()), TypeError, "x must have dtype"),
        (bad(weight=torch.zeros(16, 3, 3, 8)), ValueError, r"weight must have shape \(N, 2, 2, 8\)"),
        (bad(weight=torch.zeros(16, 2, 2, 8).half()), TypeError, "weight must have the dtype of x"),
        (bad(bias=torch.zeros(8)), ValueError, r"bias must have shape \(16\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.norm_downsample(**arguments)
