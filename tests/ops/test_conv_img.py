"""conv_img: every backend against the decoder's last lines, both kinds of picture, any upscale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lpkernels import ops, ref
from lpkernels.models.pixels import to_uint8
from tests.ops import contract

Shape = tuple[int, int, int, int, int]  # batch, height, width, channels, upscale

SMALL = [(1, 3, 5, 8, 2), (2, 4, 3, 7, 1), (3, 1, 1, 4, 3), (1, 9, 20, 4, 2)]
PUBLISHED = [(1, 256, 256, 64, 2), (1, 256, 256, 64, 1), (3, 33, 47, 64, 2)]


def make_inputs(shape: Shape, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Activations, packed weight, bias."""
    batch, height, width, channels, upscale = shape
    generator = torch.Generator().manual_seed(seed)
    outputs = 3 * upscale**2
    x = F.leaky_relu(torch.randn(batch, height, width, channels, generator=generator), 0.2)
    weight = torch.randn(outputs, 3, 3, channels, generator=generator) * 2 / (9 * channels) ** 0.5
    bias = torch.randn(outputs, generator=generator)
    return [x.to(device, dtype), weight.to(device, dtype), bias.to(device)]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


def picture(upscale: int, as_uint8: bool = False) -> contract.Function:
    return lambda *inputs: (ops.conv_img(*inputs, upscale, as_uint8),)


def picture_ref(upscale: int) -> contract.Function:
    return lambda *inputs: (ref.conv_img(*inputs, upscale),)


def assert_levels(levels: Tensor, image: Tensor, within: float) -> None:
    """8-bit levels are the truncated ones of ``image``, or neighbours where it is ``within`` of the next level."""
    assert levels.dtype == torch.uint8
    scaled = image.double().cpu().permute(0, 2, 3, 1) * 255
    assert levels.shape == scaled.shape
    low, high = (scaled - within).floor().clamp(0, 255), (scaled + within).floor().clamp(0, 255)
    got = levels.cpu().double()
    assert bool(((got >= low) & (got <= high)).all())


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)), st.integers(1, 3))
def test_reference_is_the_decoders_end(size: tuple[int, int, int], upscale: int) -> None:
    torch.manual_seed(0)
    batch, height, width = size
    conv = nn.Conv2d(5, 3 * upscale**2, kernel_size=3, padding=1).double()
    x = torch.randn(batch, 5, height, width).double()
    expected = torch.sigmoid(nn.PixelShuffle(upscale)(conv(F.leaky_relu(x, 0.2))))
    weight = ops.pack_conv_weight(conv.weight, multiple=1)
    activated = F.leaky_relu(x, 0.2).permute(0, 2, 3, 1)
    actual = ref.conv_img(activated, weight, conv.bias, upscale)
    assert contract.relative_error(actual, expected) < 1e-10
    levels = ref.conv_img(activated, weight, conv.bias, upscale, as_uint8=True)
    assert torch.equal(levels, to_uint8(actual))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
def test_matches_reference(shape: Shape, device: str) -> None:
    inputs, upscale = make_inputs(shape, torch.float32, device), shape[-1]
    contract.assert_close_to_reference(picture(upscale), picture_ref(upscale), inputs, exact(inputs))
    assert_levels(ops.conv_img(*inputs, upscale), picture_ref(upscale)(*exact(inputs))[0], within=1e-3)


def check_picture(shape: Shape, dtype: torch.dtype, device: str, name: str) -> None:
    inputs, upscale = make_inputs(shape, dtype, device), shape[-1]
    truth = ref.conv_img(*[tensor.double() for tensor in inputs], upscale)
    pytorchs = ops.registry()["conv_img"].backends["torch"].run(*inputs, upscale, False)
    with ops.use_backend(name):
        image = ops.conv_img(*inputs, upscale, as_uint8=False)
        levels = ops.conv_img(*inputs, upscale, as_uint8=True)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert levels.is_contiguous()
    assert image.shape == truth.shape
    bound = 1.5 * contract.relative_error(pytorchs, truth) + contract.ULPS[dtype]
    assert contract.relative_error(image, truth) <= bound
    assert_levels(levels, image, within=1e-4)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_matches_reference(shape: Shape, dtype: torch.dtype) -> None:
    check_picture(shape, dtype, "cpu", "triton")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("shape", PUBLISHED)
def test_half_within_pytorchs_own_error(shape: Shape, name: str) -> None:
    if reason := ops.registry()["conv_img"].backends[name].why_not("cuda"):
        pytest.skip(reason)
    check_picture(shape, torch.float16, "cuda", name)


def check_slice(dtype: torch.dtype, device: str) -> None:
    x, weight, bias = make_inputs(SMALL[0], dtype, device)
    buffer = x.new_full((*x.shape[:-1], 24), float("nan"))
    buffer[..., 8:16] = x
    for as_uint8 in (False, True):
        call = picture(2, as_uint8)
        contract.assert_same(call(buffer[..., 8:16], weight, bias), call(x, weight, bias))


def test_slice(device: str) -> None:
    check_slice(torch.float32, device)


@pytest.mark.usefixtures("interpreted")
def test_triton_slice() -> None:
    with ops.use_backend("triton"):
        check_slice(torch.float32, "cpu")


def test_saturated_values_are_the_last_levels(device: str) -> None:
    x, weight, bias = make_inputs((1, 2, 2, 4, 1), torch.float32, device)
    bias.copy_(torch.tensor([200.0, -200.0, 0.0]))
    levels = ops.conv_img(x, weight * 0, bias, 1)
    assert levels.flatten(0, 2).unique(dim=0).tolist() == [[255, 0, 127]]


@pytest.mark.parametrize("as_uint8", [False, True])
def test_compile(as_uint8: bool, device: str) -> None:
    contract.check_compile(picture(2, as_uint8), make_inputs(SMALL[0], torch.float32, device))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("as_uint8", [False, True])
def test_triton_opcheck_and_compile(as_uint8: bool) -> None:
    inputs = make_inputs(SMALL[0], torch.float32, "cpu")
    contract.check_opcheck(torch.ops.lpkernels.conv_img_triton, [*inputs, 2, as_uint8])
    with ops.use_backend("triton"):
        contract.check_compile(picture(2, as_uint8), inputs)
        contract.check_export(picture(2, as_uint8), inputs, "lpkernels.conv_img_triton")


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(picture(2, True), make_inputs(PUBLISHED[0], torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(picture(2, True), make_inputs(PUBLISHED[0], torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(picture(2, True), make_inputs(PUBLISHED[0], torch.float16, "cuda"), change)


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs(SMALL[0], torch.float32, device)
    inputs[1].requires_grad_()
    with pytest.raises(RuntimeError, match="conv_img has no gradient"):
        ops.conv_img(*inputs)


def test_hopper_kernel_says_what_it_refuses() -> None:
    def reason(shape: Shape, dtype: torch.dtype) -> str | None:
        inputs = make_inputs(shape, dtype, "cpu")
        signature = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
        return ops.registry()["conv_img"].backends["cuda"].refuses(signature)

    assert reason((1, 2, 2, 64, 2), torch.float16) is None
    assert "multiples of 64 and an upscale" in str(reason((1, 2, 2, 32, 2), torch.float16))
    assert "got torch.float16, 64, 27 outputs" in str(reason((1, 2, 2, 64, 3), torch.float16))
    assert "made for float16" in str(reason((1, 2, 2, 64, 1), torch.float32))


def bad(**changed: object) -> dict[str, object]:
    inputs = make_inputs((1, 2, 3, 4, 2), torch.float32, "cpu")
    return {**dict(zip(("x", "weight", "bias"), inputs, strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x="x"), TypeError, "x must be a torch.Tensor, got str"),
        (bad(x=torch.zeros(1, 4, 2, 3).permute(0, 2, 3, 1)), ValueError, "x must be channels-last"),
        (bad(x=torch.zeros(1, 2, 3, 4).double()), TypeError, "x must have dtype"),
        (bad(upscale=0), ValueError, "upscale must be at least 1, got 0"),
        (bad(upscale=1), ValueError, r"weight must have shape \(3, 3, 3, 4\)"),
        (bad(weight=torch.zeros(12, 3, 3, 8)), ValueError, r"weight must have shape \(12, 3, 3, 4\)"),
        (bad(weight=torch.zeros(12, 3, 3, 4).half()), TypeError, "weight must have the dtype of x"),
        (bad(weight=torch.zeros(12, 4, 3, 3).permute(0, 2, 3, 1)), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(3)), ValueError, r"bias must have shape \(12\)"),
        (bad(bias=torch.zeros(12).half()), TypeError, "bias must have dtype float32"),
        (bad(bias=torch.zeros(12, device="meta")), ValueError, "bias must be on the device of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.conv_img(**arguments)
