"""mask_conv3d: every backend against conv3d in float64, packing, and what each backend refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import errors, ops, ref, rewrites
from tests.ops import contract

PUBLISHED = (1, 142, 22, 16, 64, 64)  # batch, channels, outputs, depth, height, width


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Activations (zero beyond the weight's channels, as their producer leaves them), packed weight, bias."""
    batch, channels, outputs, *spatial = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(batch, *spatial, ops.padded_channels(channels))
    x[..., :channels] = torch.randn(batch, *spatial, channels, generator=generator).relu()
    weight = torch.randn(outputs, channels, 7, 7, 7, generator=generator) / (343 * channels) ** 0.5
    bias = torch.randn(outputs, generator=generator)
    return [x.to(device, dtype), ops.pack_mask_weight(weight.to(dtype)).to(device), bias.to(device)]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


def logits_ref(*inputs: Tensor) -> tuple[Tensor]:
    return (ref.mask_conv3d(*inputs).permute(0, 4, 1, 2, 3),)


def logits_op(*inputs: Tensor) -> tuple[Tensor]:
    return (ops.mask_conv3d(*inputs),)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 5, 3, 2, 3, 4), (2, 17, 2, 3, 5, 9), (3, 16, 4, 1, 1, 1)])
def test_matches_reference(shape: tuple[int, ...], device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device)
    contract.assert_close_to_reference(logits_op, logits_ref, inputs, exact(inputs))


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "shape",
    [PUBLISHED, (2, 142, 22, 3, 64, 64), (3, 142, 22, 2, 9, 64), (1, 142, 22, 5, 33, 40), (1, 142, 22, 1, 1, 1)],
)
def test_half_within_pytorchs_own_error(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float16, "cuda")
    truth = logits_ref(*[tensor.double() for tensor in inputs])[0]
    with ops.use_backend("torch"):
        own = contract.relative_error(ops.mask_conv3d(*inputs), truth)
    assert contract.relative_error(ops.mask_conv3d(*inputs), truth) <= 1.5 * own + contract.ULPS[torch.float16]


@pytest.mark.gpu
def test_the_hopper_kernel_is_chosen_for_the_published_shape() -> None:
    op = ops.registry()["mask_conv3d"]
    if reason := op.backends["cuda"].why_not("cuda"):
        pytest.skip(reason)
    inputs = make_inputs((1, 142, 22, 2, 64, 64), torch.float16, "cuda")
    signature = tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
    assert op.choose("cuda", signature).backend == "cuda"


def test_reference_is_conv3d_of_the_unpacked_weight() -> None:
    x, channels = torch.randn(2, 3, 4, 5, 16, dtype=torch.float64), 11
    x[..., channels:] = 0
    weight, bias = torch.randn(6, channels, 7, 7, 7, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = F.conv3d(x[..., :channels].permute(0, 4, 1, 2, 3), weight, bias, padding=3)
    actual = ref.mask_conv3d(x, ops.pack_mask_weight(weight), bias).permute(0, 4, 1, 2, 3)
    assert contract.relative_error(actual, expected) < 1e-12


def test_packing_is_the_rewrite() -> None:
    weight = torch.randn(6, 11, 7, 7, 7)
    packed = ops.pack_mask_weight(weight)
    assert packed.shape == (48, 7, 7, 16)
    rows = rewrites.fold_kw_into_columns(weight)[..., 0].permute(0, 2, 3, 1)
    assert torch.equal(packed[:42, ..., :11], rows)
    assert packed[42:].abs().sum() + packed[..., 11:].abs().sum() == 0


@pytest.mark.usefixtures("poisoned")
def test_strided_inputs(device: str) -> None:
    inputs = make_inputs((2, 5, 3, 2, 3, 4), torch.float32, device)
    contract.assert_same(logits_op(*[contract.strided(t) if t.dim() > 1 else t for t in inputs]), logits_op(*inputs))


def test_flow_warp_reads_the_logits_as_they_are(device: str) -> None:
    logits = ops.mask_conv3d(*make_inputs((1, 5, 4, 2, 3, 4), torch.float32, device))
    assert logits.shape == (1, 4, 2, 3, 4)
    kp_source, kp_driving, volume = torch.rand(1, 3, 3), torch.rand(1, 3, 3), torch.rand(1, 2, 2, 3, 4)
    inputs = [logits, *[tensor.to(device) for tensor in (kp_source, kp_driving, volume)]]
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, inputs, exact(inputs))


def test_compile(device: str) -> None:
    contract.check_compile(logits_op, make_inputs((1, 5, 3, 2, 3, 4), torch.float32, device))


@pytest.mark.gpu
def test_opcheck_on_hopper() -> None:
    if reason := ops.registry()["mask_conv3d"].backends["cuda"].why_not("cuda"):
        pytest.skip(reason)
    inputs = make_inputs((1, 142, 22, 1, 3, 64), torch.float16, "cuda")
    contract.check_opcheck(torch.ops.lpkernels.mask_conv3d, inputs)
    contract.check_compile(logits_op, inputs)


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(logits_op, make_inputs(PUBLISHED, torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(logits_op, make_inputs(PUBLISHED, torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(logits_op, make_inputs(PUBLISHED, torch.float16, "cuda"), change)


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs((1, 5, 3, 2, 3, 4), torch.float32, device)
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="mask_conv3d has no gradient"):
        ops.mask_conv3d(*inputs)


def test_backends_say_what_they_refuse() -> None:
    op = ops.registry()["mask_conv3d"]
    reason = op.backends["cuda"].refuses(
        (((1, 2, 3, 80, 144), torch.float16), ((), torch.float16), ((22,), torch.float32))
    )
    assert reason is not None
    assert "W up to 64" in reason
    with ops.use_backend("torch"), pytest.raises(errors.BackendError, match="on the CPU ref is the same convolution"):
        ops.mask_conv3d(*make_inputs((1, 5, 3, 2, 3, 4), torch.float32, "cpu"))


def test_hopper_kernels_can_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNELS_NO_HOPPER", "1")
    choice = ops.registry()["mask_conv3d"].choose("cuda")
    assert choice.backend == "torch"
    assert "cuda" in choice.passed


def bad(**changed: object) -> dict[str, object]:
    names = ("x", "weight", "bias")
    return {**dict(zip(names, make_inputs((1, 5, 3, 2, 3, 4), torch.float32, "cpu"), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=1), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(1, 2, 3, 16)), ValueError, "x must have shape .*got 4 dimensions"),
        (bad(x=torch.zeros(1, 2, 3, 4, 5)), ValueError, "padded to a multiple of 16"),
        (bad(x=torch.zeros(1, 0, 3, 4, 16)), ValueError, "no empty dimension"),
        (bad(weight=torch.zeros(32, 7, 7, 32)), ValueError, r"weight must have shape \(N, 7, 7, 16\)"),
        (bad(weight=torch.zeros(48, 7, 7, 16)), ValueError, "weight must have the columns pack_mask_weight gives"),
        (bad(bias=torch.zeros(2, 2)), ValueError, "bias must have shape"),
        (bad(bias=torch.zeros(3).half()), TypeError, "bias must have dtype float32, got float16"),
        (bad(weight=torch.zeros(32, 7, 7, 16).half()), TypeError, "weight must have the dtype of x"),
        (bad(x=torch.zeros(1, 2, 3, 4, 16).double()), TypeError, "x must have dtype"),
        (bad(bias=torch.zeros(3, device="meta")), ValueError, "bias must be on the device of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.mask_conv3d(**arguments)


def test_pack_refuses_another_kernel() -> None:
    with pytest.raises(ValueError, match=r"weight must have shape \(O, C, 7, 7, 7\)"):
        ops.pack_mask_weight(torch.zeros(2, 3, 3, 3, 3))
