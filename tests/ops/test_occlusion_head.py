"""occlusion_head: every backend against the dense motion network's occlusion conv, packing, slices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lpkernels import ops, ref
from tests.ops import contract, convnext

Shape = tuple[int, int, int, int, int]  # batch, depth, height, width, channels

SMALL = [(1, 2, 3, 5, 5), (2, 3, 4, 9, 17), (3, 1, 1, 1, 16), (1, 5, 9, 2, 3)]
PUBLISHED = [(1, 16, 64, 64, 142), (2, 16, 64, 64, 142), (3, 5, 33, 17, 142)]
ODD = [(2, 1, 1, 1, 16), (1, 3, 9, 31, 30), (2, 7, 20, 21, 512)]


def make_inputs(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Activations (zero beyond the weight's channels, as their producer leaves them), packed weight, bias."""
    batch, depth, height, width, channels = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(batch, depth, height, width, ops.padded_channels(channels))
    x[..., :channels] = torch.randn(batch, depth, height, width, channels, generator=generator).relu()
    weight = torch.randn(1, channels * depth, 7, 7, generator=generator) * 2 / (49 * channels * depth) ** 0.5
    bias = torch.randn(1, generator=generator)
    return [x.to(device, dtype), ops.pack_occlusion_weight(weight.to(dtype), depth).to(device), bias.to(device)]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


def occlusion(*inputs: Tensor) -> tuple[Tensor]:
    return (ops.occlusion_head(*inputs),)


def occlusion_ref(*inputs: Tensor) -> tuple[Tensor]:
    return (ref.occlusion_head(*inputs),)


@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 5))
def test_reference_is_the_published_head(shape: Shape) -> None:
    torch.manual_seed(0)
    batch, depth, height, width, channels = shape
    conv = nn.Conv2d(channels * depth, 1, kernel_size=7, padding=3).double()
    prediction = torch.randn(batch, channels, depth, height, width).double()
    expected = torch.sigmoid(conv(prediction.flatten(1, 2)))
    x = torch.zeros(batch, depth, height, width, 16).double()
    x[..., :channels] = prediction.permute(0, 2, 3, 4, 1)
    actual = ref.occlusion_head(x, ops.pack_occlusion_weight(conv.weight, depth), conv.bias)
    assert contract.relative_error(actual, expected[:, 0]) < 1e-10


def test_packing() -> None:
    weight = torch.randn(1, 17 * 3, 7, 7)
    packed = ops.pack_occlusion_weight(weight, 3)
    assert packed.shape == (56, 3, 32)
    assert packed.is_contiguous()
    assert packed[2 * 7 + 5, 1, 4] == weight[0, 4 * 3 + 1, 2, 5]
    assert packed[49:].abs().sum() + packed[..., 17:].abs().sum() == 0


@pytest.mark.parametrize("weight", [torch.zeros(1, 6, 3, 3), torch.zeros(2, 6, 7, 7), torch.zeros(1, 7, 7, 7)])
def test_packing_refuses_what_does_not_fit(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="weight must have"):
        ops.pack_occlusion_weight(weight, 3)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: Shape, device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device)
    contract.assert_close_to_reference(occlusion, occlusion_ref, inputs, exact(inputs))


def check_map(shape: Shape, dtype: torch.dtype, device: str, backend: str) -> None:
    inputs = make_inputs(shape, dtype, device)
    truth = ref.occlusion_head(*[tensor.double() for tensor in inputs])
    own = contract.relative_error(ops.registry()["occlusion_head"].backends["torch"].run(*inputs), truth)
    with convnext.only("occlusion_head", backend, inputs):
        actual = ops.occlusion_head(*inputs)
    assert actual.dtype == torch.float32
    assert actual.shape == truth.shape
    assert contract.relative_error(actual, truth) <= 1.5 * own + contract.ULPS[dtype]


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_matches_reference(shape: Shape, dtype: torch.dtype) -> None:
    check_map(shape, dtype, "cpu", "triton")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*PUBLISHED, *ODD])
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_half_within_pytorchs_own_error(shape: Shape, backend: str) -> None:
    check_map(shape, torch.float16, "cuda", backend)


@pytest.mark.gpu
def test_the_cuda_kernel_is_chosen_for_the_published_shape() -> None:
    op = ops.registry()["occlusion_head"]
    if reason := op.backends["cuda"].why_not("cuda"):
        pytest.skip(reason)
    inputs = make_inputs(PUBLISHED[0], torch.float16, "cuda")
    assert op.choose("cuda", convnext.signature(inputs), inputs[0].shape[-1]).backend == "cuda"


def check_slice(dtype: torch.dtype, device: str) -> None:
    x, weight, bias = make_inputs(SMALL[1], dtype, device)
    channels = x.shape[-1]
    buffer = x.new_full((*x.shape[:-1], channels + 16), float("nan"))
    buffer[..., 8:-8] = x
    assert contract.relative_error(*occlusion(buffer[..., 8:-8], weight, bias), *occlusion(x, weight, bias)) < 1e-6


def test_slice(device: str) -> None:
    check_slice(torch.float32, device)


@pytest.mark.gpu
def test_slice_in_half() -> None:
    with convnext.only("occlusion_head", "cuda", make_inputs(SMALL[1], torch.float16, "cuda")):
        check_slice(torch.float16, "cuda")


@pytest.mark.usefixtures("interpreted")
def test_triton_slice() -> None:
    with ops.use_backend("triton"):
        check_slice(torch.float32, "cpu")


def test_compile(device: str) -> None:
    contract.check_compile(occlusion, make_inputs(SMALL[0], torch.float32, device))


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs(SMALL[0], torch.float32, "cpu")
    contract.check_opcheck(torch.ops.lpkernels.occlusion_head_triton, inputs)
    with ops.use_backend("triton"):
        contract.check_compile(occlusion, inputs)
        contract.check_export(occlusion, inputs, "lpkernels.occlusion_head_triton")


@pytest.mark.gpu
def test_opcheck_of_the_cuda_kernel() -> None:
    inputs = make_inputs(ODD[1], torch.float16, "cuda")
    with convnext.only("occlusion_head", "cuda", inputs):
        contract.check_opcheck(torch.ops.lpkernels.occlusion_head, inputs)
        contract.check_compile(occlusion, inputs)


def test_what_the_cuda_kernel_refuses() -> None:
    cuda = ops.registry()["occlusion_head"].backends["cuda"]

    def reason(channels: int, dtype: torch.dtype) -> str | None:
        return cuda.refuses((((1, 2, 3, 4, channels), dtype), ((56, 2, channels), dtype), ((1,), torch.float32)))

    assert cuda.spacing == 8
    assert reason(144, torch.float16) is reason(512, torch.float16) is None
    assert "multiples of 16, at most 512; got torch.float16, 24" in str(reason(24, torch.float16))
    assert "got torch.float16, 528" in str(reason(528, torch.float16))
    assert "made for float16" in str(reason(144, torch.bfloat16))


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(occlusion, make_inputs(PUBLISHED[0], torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(occlusion, make_inputs(PUBLISHED[0], torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(occlusion, make_inputs(PUBLISHED[0], torch.float16, "cuda"), change)


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs(SMALL[0], torch.float32, device)
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="occlusion_head has no gradient"):
        ops.occlusion_head(*inputs)


def bad(**changed: object) -> dict[str, object]:
    inputs = make_inputs((1, 2, 3, 4, 16), torch.float32, "cpu")
    return {**dict(zip(("x", "weight", "bias"), inputs, strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=3), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(2, 3, 4, 16)), ValueError, r"x must have shape \(B, D, H, W, C\), got 4 dimensions"),
        (bad(x=torch.zeros(1, 16, 2, 3, 4).permute(0, 2, 3, 4, 1)), ValueError, "x must be channels-last"),
        (bad(x=torch.zeros(1, 2, 3, 4, 16).double()), TypeError, "x must have dtype"),
        (bad(weight=torch.zeros(49, 2, 16)), ValueError, r"weight must have shape \(56, 2, 16\)"),
        (bad(weight=torch.zeros(56, 2, 16).half()), TypeError, "weight must have the dtype of x"),
        (bad(weight=torch.zeros(56, 16, 2).transpose(1, 2)), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(())), ValueError, r"bias must have shape \(1\)"),
        (bad(bias=torch.zeros(1).half()), TypeError, "bias must have dtype float32"),
        (bad(bias=torch.zeros(1, device="meta")), ValueError, "bias must be on the device of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.occlusion_head(**arguments)
