"""patch_norm: every backend against conv2d and layer norm in float64, bytes and floats, any strides, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lpkernels import ops, ref
from lpkernels.models.convnextv2 import LayerNorm
from tests.ops import contract, convnext

SMALL = [(1, 8, 12, 16), (2, 9, 7, 24), (3, 4, 4, 5)]  # batch, height, width, outputs
HALVES = [torch.float16, torch.bfloat16]
NAMES = ("x", "weight", "bias", "norm_weight", "norm_bias")


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", as_bytes: bool = True) -> list[Tensor]:
    random, (*rest, outputs) = convnext.Random(), shape
    picture = torch.rand(*rest, 3, generator=random.generator)
    picture = (picture * 255).round().to(torch.uint8) if as_bytes else picture
    vectors = [random.normal(outputs) for _ in range(3)]
    inputs = convnext.lowered([picture, random.normal(outputs, 4, 4, 3, scale=0.2), *vectors], (1,), dtype, device)
    return inputs


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_matches_reference(shape: tuple[int, ...], as_bytes: bool, device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device, as_bytes)
    functions = convnext.tupled(ops.patch_norm), convnext.tupled(ref.patch_norm)
    contract.assert_close_to_reference(*functions, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("as_bytes", [True, False])
def test_triton_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, as_bytes: bool) -> None:
    inputs = make_inputs(shape, dtype, as_bytes=as_bytes)
    with ops.use_backend("triton"):
        convnext.check_half(ops.patch_norm, ref.patch_norm_in, inputs, dtype)


def test_reference_is_the_published_stem() -> None:
    conv, norm = nn.Conv2d(3, 20, 4, 4).double(), LayerNorm(20, channels_first=True).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    picture = torch.randint(0, 256, (2, 9, 13, 3), dtype=torch.uint8)
    expected = norm(conv(picture.permute(0, 3, 1, 2).double() / 255)).permute(0, 2, 3, 1)
    actual = ref.patch_norm(picture, conv.weight.permute(0, 2, 3, 1), conv.bias, norm.weight, norm.bias)
    assert contract.relative_error(actual, expected) < 1e-12


def check_strides(device: str, dtype: torch.dtype = torch.float32, as_bytes: bool = False) -> None:
    picture, *rest = make_inputs((2, 9, 12, 16), dtype, device, as_bytes)
    planes = picture.permute(0, 3, 1, 2).contiguous()
    contract.assert_same([ops.patch_norm(planes.permute(0, 2, 3, 1), *rest)], [ops.patch_norm(picture, *rest)])
    crop = picture.new_zeros(2, 20, 20, 3)[:, 3:12, 5:17]
    contract.assert_same([ops.patch_norm(crop.copy_(picture), *rest)], [ops.patch_norm(picture, *rest)])
    columns = picture.transpose(1, 2).contiguous().transpose(1, 2)
    contract.assert_same([ops.patch_norm(columns, *rest)], [ops.patch_norm(picture, *rest)])
    one = picture[:1].expand(2, -1, -1, -1)
    contract.assert_same([ops.patch_norm(one, *rest)], [ops.patch_norm(one.contiguous(), *rest)])


def test_any_strides(device: str) -> None:
    check_strides(device)


@pytest.mark.gpu
@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_any_strides_in_half(as_bytes: bool, backend: str) -> None:
    with convnext.only("patch_norm", backend, make_inputs((2, 9, 12, 16), torch.float16, "cuda", as_bytes)):
        check_strides("cuda", torch.float16, as_bytes)


@pytest.mark.usefixtures("interpreted")
def test_triton_any_strides() -> None:
    with ops.use_backend("triton"):
        check_strides("cpu")


def test_opcheck_and_compile(device: str) -> None:
    contract.check_compile(convnext.tupled(ops.patch_norm), make_inputs((1, 8, 12, 16), torch.float32, device))


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 8, 4, 16), torch.float32)
    convnext.check_triton(ops.patch_norm, inputs, torch.ops.lpkernels.patch_norm_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 256, 256, 96), (3, 130, 77, 96), (1, 5, 4, 8), (2, 17, 24, 40)])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_half_within_pytorchs_own_error(
    shape: tuple[int, ...], dtype: torch.dtype, as_bytes: bool, backend: str
) -> None:
    inputs = make_inputs(shape, dtype, "cuda", as_bytes)
    with convnext.only("patch_norm", backend, inputs):
        convnext.check_half(ops.patch_norm, ref.patch_norm_in, inputs, dtype)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("picture", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", convnext.GPU_BACKENDS)
def test_float_pictures_of_every_dtype(picture: torch.dtype, backend: str) -> None:
    x, *rest = make_inputs((2, 20, 12, 96), torch.float16, "cuda", as_bytes=False)
    inputs = [x.to(picture), *rest]
    with convnext.only("patch_norm", backend, inputs):
        convnext.check_half(ops.patch_norm, ref.patch_norm_in, inputs, torch.float16)


@pytest.mark.gpu
def test_the_cuda_kernel_is_chosen_for_the_published_shape() -> None:
    op = ops.registry()["patch_norm"]
    if reason := op.backends["cuda"].why_not("cuda"):
        pytest.skip(reason)
    inputs = make_inputs((1, 256, 256, 96), torch.float16, "cuda")
    assert op.choose("cuda", convnext.signature(inputs)).backend == "cuda"


@pytest.mark.gpu
def test_opcheck_of_the_cuda_kernel() -> None:
    inputs = make_inputs((2, 17, 24, 40), torch.float16, "cuda")
    with convnext.only("patch_norm", "cuda", inputs):
        contract.check_opcheck(torch.ops.lpkernels.patch_norm, inputs)
        contract.check_compile(convnext.tupled(ops.patch_norm), inputs)


def test_what_the_cuda_kernel_refuses() -> None:
    refuses = ops.registry()["patch_norm"].backends["cuda"].refuses
    for picture in (torch.uint8, torch.float32):
        taken = (((1, 8, 12, 3), picture), ((96, 4, 4, 3), torch.float16))
        assert refuses(taken) is None
    for weight in ((104, 4, 4, 3), (12, 4, 4, 3), (16, 2, 2, 3), (16, 4, 4, 4)):
        reason = refuses((((1, 8, 12, weight[-1]), torch.uint8), (weight, torch.float16)))
        assert f"got torch.float16, {weight[0]} outputs of {weight[1:]}" in str(reason)
    assert "bfloat16" in str(refuses(convnext.signature(make_inputs((1, 8, 12, 96), torch.bfloat16))))


@pytest.mark.gpu
def test_repeatable_streams_and_graphs() -> None:
    convnext.check_gpu(ops.patch_norm, make_inputs((1, 256, 256, 96), torch.float16, "cuda"), change=1)


def test_gradients_are_refused() -> None:
    convnext.check_gradient_is_refused(ops.patch_norm, make_inputs(SMALL[0], torch.float32), "patch_norm")


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(NAMES, make_inputs((1, 8, 12, 16), torch.float32), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=None), TypeError, "x must be a torch.Tensor, got NoneType"),
        (bad(x=torch.zeros(1, 3, 12, 3)), ValueError, "x must be at least 4 pixels high and wide"),
        (bad(x=torch.zeros(1, 8, 12, 3).int()), TypeError, "x must have dtype uint8"),
        (bad(x=torch.zeros(1, 8, 12, 1)), ValueError, r"weight must have shape \(N, P, P, 1\)"),
        (bad(weight=torch.zeros(16, 4, 2, 3)), ValueError, "weight must have as many taps down as across"),
        (bad(weight=torch.zeros(16, 4, 4, 3).double()), TypeError, "weight must have dtype"),
        (bad(weight=torch.zeros(16, 4, 4, 3, device="meta")), ValueError, "weight must be on the device of x"),
        (bad(bias=torch.zeros(8)), ValueError, r"bias must have shape \(16\)"),
        (bad(norm_weight=torch.zeros(16).half()), TypeError, "norm_weight must have dtype float32"),
        (bad(norm_bias=torch.zeros(8)), ValueError, r"norm_bias must have shape \(16\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.patch_norm(**arguments)
