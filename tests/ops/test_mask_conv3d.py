"""mask_conv3d: every backend against conv3d in float64, packing, and what each backend refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import _row_pairs, errors, ops, ref, rewrites
from tests.host_data import NoHostData
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


def pair_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, heavy: bool = False) -> list[Tensor]:
    """The same call with the weight of row pairs, rounded once; heavy: activations with a long tail, like real ones."""
    batch, channels, outputs, *_ = shape
    x, _, bias = make_inputs((batch, channels, outputs, *shape[3:]), torch.float32, device)
    if heavy:
        x[..., :channels] = torch.exp(1.5 * torch.randn(x[..., :channels].shape, generator=seeded(1))).to(device)
    weight = torch.randn(outputs, channels, 7, 7, 7, generator=seeded(2)) / (343 * channels) ** 0.5
    return [x.to(dtype), ops.pack_mask_row_pairs(weight).to(device, dtype), bias]


def plain_weight(shape: tuple[int, ...], device: str) -> Tensor:
    """The weight of ``pair_inputs`` as taps, not rounded."""
    _, channels, outputs, *_ = shape
    weight = torch.randn(outputs, channels, 7, 7, 7, generator=seeded(2)) / (343 * channels) ** 0.5
    return ops.pack_mask_weight(weight).to(device)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


HOPPER = [PUBLISHED, *[(b, 142, 22, *grid) for b, grid in ((2, (3, 64, 64)), (3, (2, 9, 64)), (1, (5, 33, 40)))]]
HOPPER += [(1, 142, 22, 1, 1, 1), (1, 129, 22, 2, 6, 17)]


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("shape", HOPPER)
def test_row_pairs_within_pytorchs_own_error(shape: tuple[int, ...], heavy: bool) -> None:
    inputs = hopper_inputs(shape, heavy)
    x, _, bias = inputs
    taps = plain_weight(shape, "cuda")
    truth = logits_ref(x.double(), taps.double(), bias.double())[0]
    with ops.use_backend("torch"):
        own = contract.relative_error(ops.mask_conv3d(x, taps.half(), bias), truth)
    with ops.use_backend("cuda"):
        error = contract.relative_error(ops.mask_conv3d(*inputs), truth)
    assert error <= 1.5 * own + contract.ULPS[torch.float16], (error, own)


def hopper_inputs(shape: tuple[int, ...], heavy: bool = False) -> list[Tensor]:
    """``pair_inputs`` for the Hopper kernel; skips where it cannot run."""
    if reason := ops.registry()["mask_conv3d"].backends["cuda"].why_not("cuda"):
        pytest.skip(reason)
    return pair_inputs(shape, torch.float16, "cuda", heavy)


@pytest.mark.gpu
def test_what_lies_beyond_a_pixels_taps_does_not_matter() -> None:
    x, weight, bias = hopper_inputs((1, 142, 22, 9, 16, 24))
    before = ops.mask_conv3d(x, weight, bias)
    x[:, 4, 5, 6] = float("inf")
    after = ops.mask_conv3d(x, weight, bias)
    beyond = torch.ones(9, 16, 24, dtype=torch.bool, device="cuda")
    beyond[1:8, 2:10, 3:10] = False  # row 9 does not see it, but shares products with row 8
    assert torch.equal(after[..., beyond], before[..., beyond])
    assert not after[0, :, 4, 5, 6].isfinite().any()


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 142, 22, 3, 64, 64), (1, 142, 22, 5, 33, 40)])
def test_torch_takes_taps_on_a_gpu(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float16, "cuda")
    truth = logits_ref(*[tensor.double() for tensor in inputs])[0]
    assert ops.registry()["mask_conv3d"].choose("cuda", signature_of(inputs)).backend == "torch"
    assert contract.relative_error(ops.mask_conv3d(*inputs), truth) <= 1e-3


@pytest.mark.gpu
def test_the_hopper_kernel_is_chosen_for_the_published_shape() -> None:
    inputs = hopper_inputs((1, 142, 22, 2, 64, 64))
    assert ops.registry()["mask_conv3d"].choose("cuda", signature_of(inputs)).backend == "cuda"


def signature_of(inputs: list[Tensor]) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)


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


def test_row_pairs_are_the_same_convolution(device: str) -> None:
    shape = (2, 142, 22, 2, 5, 3)
    x, tiles, bias = pair_inputs(shape, torch.float32, device)
    assert tiles.shape == (160, 16, 9, 64)
    with ops.use_backend("ref"), NoHostData():
        actual = ops.mask_conv3d(x, tiles, bias)
    (expected,) = logits_ref(x.double(), plain_weight(shape, device).double(), bias.double())
    assert contract.relative_error(actual, expected) < 1e-6


def test_row_pairs_hold_each_kernel_once() -> None:
    taps = ops.pack_mask_weight(torch.randn(22, 142, 7, 7, 7, dtype=torch.float64))
    kernels = rewrites.row_pair_kernels(taps, 2)
    tiles = ops.pack_mask_row_pairs(taps[:154, ..., :142].unflatten(0, (7, 22)).permute(1, 4, 2, 3, 0))
    assert torch.equal(_row_pairs.kernels(tiles), kernels)
    assert tiles.abs().sum().isclose(kernels.abs().sum())


def test_row_pairs_are_packed_where_their_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ops.pairs_rows("cpu", torch.float16, 142, 22)
    op = ops.registry()["mask_conv3d"]
    monkeypatch.setitem(op.backends, "cuda", dataclasses.replace(op.backends["cuda"], why_not=lambda device_type: None))
    with ops.use_backend("cuda", "ref"):
        assert ops.pairs_rows("cuda", torch.float16, 142, 22)
        assert not ops.pairs_rows("cuda", torch.float32, 142, 22)
        assert not ops.pairs_rows("cuda", torch.float16, 60, 22)
    with ops.use_backend("ref"):
        assert not ops.pairs_rows("cuda", torch.float16, 142, 22)


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
    inputs = hopper_inputs((1, 142, 22, 1, 3, 64))
    contract.check_opcheck(torch.ops.lpkernels.mask_conv3d, inputs)
    contract.check_compile(logits_op, inputs)


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(logits_op, hopper_inputs(PUBLISHED))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(logits_op, hopper_inputs(PUBLISHED))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(logits_op, hopper_inputs(PUBLISHED), change)


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs((1, 5, 3, 2, 3, 4), torch.float32, device)
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="mask_conv3d has no gradient"):
        ops.mask_conv3d(*inputs)


def test_backends_say_what_they_refuse() -> None:
    backends = ops.registry()["mask_conv3d"].backends
    x, wide, bias = ((1, 2, 3, 4, 144), torch.float16), ((1, 2, 3, 80, 144), torch.float16), ((22,), torch.float32)
    pairs, taps = ((160, 16, 9, 64), torch.float16), ((160, 7, 7, 144), torch.float16)
    assert "W up to 64" in str(backends["cuda"].refuses((wide, pairs, bias)))
    assert "got one of taps" in str(backends["cuda"].refuses((x, taps, bias)))
    assert backends["cuda"].refuses((x, pairs, bias)) is None
    assert "got one of row pairs" in str(backends["torch"].refuses((x, pairs, bias)))
    assert backends["torch"].refuses((x, taps, bias)) is None
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
        (bad(weight=torch.zeros(32, 16, 9, 64)), ValueError, r"weight must have shape \(N, 7, 7, 16\)"),
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
    with pytest.raises(ValueError, match=r"weight must have shape \(O, C, 7, 7, 7\)"):
        ops.pack_mask_row_pairs(torch.zeros(2, 3, 3, 3, 3))
    with pytest.raises(ValueError, match=r"129 to 144 channels, got \(2, 128, 7, 7, 7\)"):
        ops.pack_mask_row_pairs(torch.zeros(2, 128, 7, 7, 7))
