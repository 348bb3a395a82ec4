"""spade_conv: every backend against the published SPADE and LeakyReLU, slices of wider buffers, half-size x."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref, rewrites
from lpkernels.models.blocks import SPADE
from tests.ops import contract

NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """Sizes of one call; ``half``: x of half the size; ``beta``: not the shortcut's gamma alone."""

    batch: int
    height: int
    width: int
    hidden: int
    channels: int
    half: bool = False
    beta: bool = True


SMALL = [
    Case(1, 3, 5, 8, 32),
    Case(2, 4, 6, 3, 5, half=True),
    Case(3, 1, 1, 4, 7, beta=False),
    Case(1, 2, 66, 4, 96, half=True),
]
PUBLISHED = [
    Case(1, 64, 64, 128, 512),
    Case(1, 128, 128, 128, 512, half=True),
    Case(1, 128, 128, 128, 512, half=True, beta=False),
    Case(1, 128, 128, 128, 256),
    Case(1, 256, 256, 128, 256, half=True),
    Case(1, 256, 256, 128, 256, half=True, beta=False),
    Case(1, 256, 256, 128, 64),
    Case(3, 33, 47, 128, 64),
]


def make_inputs(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Hidden activations, packed weight and bias, x far from zero mean, its statistics."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    scale = 2 if case.half else 1
    x = 3 * normal(case.batch, case.height // scale, case.width // scale, case.channels) + 2
    actv = normal(case.batch, case.height, case.width, case.hidden).relu()
    convs = [
        part
        for _ in range(2)
        for part in (
            normal(case.channels, case.hidden, 3, 3) / (9 * case.hidden) ** 0.5,
            normal(case.channels),
        )
    ]
    weight, bias = ops.pack_spade_weight(*convs) if case.beta else ops.pack_gamma_weight(*convs[:2])
    x = x.to(dtype)
    tensors = actv.to(dtype), weight.to(dtype), bias, x, ref.instance_norm_stats(x)
    return [tensor.to(device) for tensor in tensors]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


def modulated(*inputs: Tensor) -> tuple[Tensor]:
    return (ops.spade_conv(*inputs),)


def modulated_ref(*inputs: Tensor) -> tuple[Tensor]:
    return (ref.spade_conv(*inputs),)


def backend(name: str) -> contract.Function:
    """The op with one backend, called past the question whether it is meant for the device."""
    run = ops.registry()["spade_conv"].backends[name].run

    def call(actv: Tensor, weight: Tensor, bias: Tensor, x: Tensor, stats: Tensor) -> tuple[Tensor]:
        out = x.new_empty(*actv.shape[:3], x.shape[-1])
        run(actv, weight, bias, x, stats, 0.2, out)
        return (out,)

    return call


def nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([1, 5, 32, 64]), st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4)), st.booleans()
)
def test_reference_is_the_published_spade(channels: int, size: tuple[int, int, int], half: bool) -> None:
    torch.manual_seed(0)
    batch, height, width = size
    spade = SPADE(channels, 4).double()
    x, feature = torch.randn(batch, channels, height, width).double(), torch.randn(batch, 4, 6, 4).double()
    large = F.interpolate(x, scale_factor=2) if half else x
    expected = F.leaky_relu(spade(large, feature), 0.2)
    actv = spade.mlp_shared(F.interpolate(feature, size=large.shape[2:], mode="nearest"))
    gamma, beta = spade.mlp_gamma, spade.mlp_beta
    weight, bias = ops.pack_spade_weight(gamma.weight, gamma.bias, beta.weight, beta.bias)
    stats = ref.instance_norm_stats(nhwc(x))
    actual = ref.spade_conv(nhwc(actv), weight, bias, nhwc(x), stats)
    assert contract.relative_error(actual, nhwc(expected)) < 1e-10


def test_gamma_alone_is_the_shortcuts_spade() -> None:
    torch.manual_seed(0)
    spade, shortcut = SPADE(6, 4).double(), torch.randn(3, 6, 1, 1).double()
    x, feature = torch.randn(2, 6, 5, 4).double(), torch.randn(2, 4, 5, 4).double()
    expected = F.conv2d(spade(x, feature), shortcut)
    actv = spade.mlp_shared(feature)
    weight, bias = ops.pack_gamma_weight(spade.mlp_gamma.weight, spade.mlp_gamma.bias)
    scaled = ref.spade_conv(nhwc(actv), weight, bias, nhwc(x), ref.instance_norm_stats(nhwc(x)), 1.0)
    merged = rewrites.merge_shortcut_beta(shortcut, spade.mlp_beta.weight, spade.mlp_beta.bias)
    actual = F.conv2d(scaled.permute(0, 3, 1, 2), shortcut) + F.conv2d(actv, *merged, padding=1)
    assert contract.relative_error(actual, expected) < 1e-10


def test_packing_is_the_rewrite_with_a_wide_bias() -> None:
    convs = [torch.randn(64, 4, 3, 3).half(), torch.randn(64).half(), torch.randn(64, 4, 3, 3).half(), torch.rand(64)]
    weight, bias = ops.pack_spade_weight(*convs)
    assert weight.shape == (128, 3, 3, 4)
    assert weight.is_contiguous()
    assert (weight.dtype, bias.dtype) == (torch.float16, torch.float32)
    assert torch.equal(weight[32:64].permute(0, 3, 1, 2), convs[2][:32])
    assert torch.equal(bias[64:96], convs[1][32:].float() + 1)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", SMALL)
def test_matches_reference(case: Case, device: str) -> None:
    inputs = make_inputs(case, torch.float32, device)
    contract.assert_close_to_reference(modulated, modulated_ref, inputs, exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_triton_matches_reference(case: Case, dtype: torch.dtype) -> None:
    inputs = make_inputs(case, dtype, "cpu")
    with ops.use_backend("triton"):
        actual = ops.spade_conv(*inputs)
    assert actual.dtype == dtype
    truth = modulated_ref(*exact(inputs))[0]
    own = contract.relative_error(backend("torch")(*inputs)[0], truth)
    assert contract.relative_error(actual, truth) <= 1.5 * own + contract.ULPS[dtype]


@pytest.mark.parametrize("case", SMALL)
def test_torch_matches_reference(case: Case) -> None:
    inputs = make_inputs(case, torch.float32, "cpu")
    contract.assert_close_to_reference(backend("torch"), modulated_ref, inputs, exact(inputs))


def slices(case: Case, dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Inputs that are channels of wider buffers of NaN; a buffer of NaN and the slice of it to write."""

    def inside(tensor: Tensor) -> Tensor:
        wider = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 16), NAN)
        wider[..., 8:-8] = tensor
        return wider[..., 8:-8]

    actv, weight, bias, x, stats = make_inputs(case, dtype, device)
    buffer = x.new_full((*actv.shape[:3], case.channels + 24), NAN)
    return [inside(actv), weight, bias, inside(x), stats], buffer, buffer[..., 8:-16]


def check_slices(case: Case, dtype: torch.dtype, device: str) -> None:
    inputs, buffer, out = slices(case, dtype, device)
    expected = ops.spade_conv(*[tensor.contiguous() for tensor in inputs])
    assert ops.spade_conv(*inputs, out=out) is out
    contract.assert_same([out], [expected])
    assert buffer[..., :8].isnan().all()
    assert buffer[..., -16:].isnan().all()


@pytest.mark.parametrize("case", SMALL)
def test_slices(case: Case, device: str) -> None:
    check_slices(case, torch.float32, device)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", SMALL)
def test_triton_slices(case: Case) -> None:
    with ops.use_backend("triton"):
        check_slices(case, torch.float32, "cpu")


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_slopes(slope: float, device: str) -> None:
    inputs = make_inputs(SMALL[0], torch.float32, device)
    plain = ref.spade_conv(*exact(inputs), 1.0)
    expected = plain if slope else plain.relu()
    assert contract.relative_error(ops.spade_conv(*inputs, slope), expected) < 1e-5


def test_compile(device: str) -> None:
    contract.check_compile(modulated, make_inputs(SMALL[1], torch.float32, device))


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs(SMALL[1], torch.float32, "cpu")
    out = torch.zeros(*inputs[0].shape[:3], SMALL[1].channels)
    contract.check_opcheck(torch.ops.lpkernels.spade_conv_triton, [*inputs, 0.2, out])
    with ops.use_backend("triton"):
        contract.check_compile(modulated, inputs)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("case", PUBLISHED)
def test_half_within_pytorchs_own_error(case: Case, name: str) -> None:
    if reason := ops.registry()["spade_conv"].backends[name].why_not("cuda"):
        pytest.skip(reason)
    inputs, buffer, out = slices(case, torch.float16, "cuda")
    truth = ref.spade_conv(*[tensor.double() for tensor in inputs])
    with ops.use_backend("torch"):
        own = contract.relative_error(ops.spade_conv(*inputs), truth)
    with ops.use_backend(name):
        ops.spade_conv(*inputs, out=out)
    assert contract.relative_error(out, truth) <= 1.5 * own + contract.ULPS[torch.float16]
    assert buffer[..., :8].isnan().all()
    assert buffer[..., -16:].isnan().all()


def parts_of(inputs: list[Tensor], parts: int) -> list[Tensor]:
    """The same call with the statistics of x in parts."""
    *others, x, _ = inputs
    return [*others, x, ref.channel_parts(x.float(), parts)]


@pytest.mark.parametrize("case", SMALL)
def test_statistics_in_parts(case: Case, device: str) -> None:
    inputs = make_inputs(case, torch.float32, device)
    pixels = inputs[3].shape[1] * inputs[3].shape[2]
    for parts in (1, pixels):
        actual = ops.spade_conv(*parts_of(inputs, parts))
        assert contract.relative_error(actual, ref.spade_conv(*exact(inputs))) < 1e-5


@pytest.mark.usefixtures("interpreted")
def test_triton_statistics_in_parts() -> None:
    inputs = make_inputs(SMALL[0], torch.float32, "cpu")
    with ops.use_backend("triton"):
        actual = ops.spade_conv(*parts_of(inputs, 1))
    assert contract.relative_error(actual, ref.spade_conv(*exact(inputs))) < 1e-5


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("parts", [2, 32, 64])
@pytest.mark.parametrize("case", PUBLISHED)
def test_half_statistics_in_parts(case: Case, parts: int) -> None:
    inputs = make_inputs(case, torch.float16, "cuda")
    if inputs[3][0, ..., 0].numel() % parts:
        pytest.skip("no equal parts")
    inputs = parts_of(inputs, parts)
    truth = ref.spade_conv(*exact(inputs))
    with ops.use_backend("torch"):
        own = contract.relative_error(ops.spade_conv(*inputs), truth)
    assert contract.relative_error(ops.spade_conv(*inputs), truth) <= 1.5 * own + contract.ULPS[torch.float16]


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(modulated, make_inputs(PUBLISHED[1], torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(modulated, make_inputs(PUBLISHED[0], torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)
        inputs[3].add_(1)

    contract.check_graph_capture(modulated, make_inputs(PUBLISHED[4], torch.float16, "cuda"), change)


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs(SMALL[0], torch.float32, device)
    inputs[3].requires_grad_()
    with pytest.raises(RuntimeError, match="spade_conv has no gradient"):
        ops.spade_conv(*inputs)


def test_hopper_kernel_says_what_it_refuses() -> None:
    refuses = ops.registry()["spade_conv"].backends["cuda"].refuses

    def reason(case: Case, dtype: torch.dtype) -> str | None:
        inputs = make_inputs(case, dtype, "cpu")
        return refuses(tuple((tuple(tensor.shape), tensor.dtype) for tensor in [*inputs, inputs[3]]))

    assert reason(Case(1, 2, 2, 64, 32), torch.float16) is None
    assert "multiples of 64" in str(reason(Case(1, 2, 2, 32, 32), torch.float16))
    assert "multiples of 32; got torch.float16, 64, 16" in str(reason(Case(1, 2, 2, 64, 16), torch.float16))
    assert "made for float16" in str(reason(Case(1, 2, 2, 64, 32), torch.float32))


def bad(**changed: object) -> dict[str, object]:
    names = ("actv", "weight", "bias", "x", "stats")
    return {**dict(zip(names, make_inputs(Case(1, 4, 6, 8, 5), torch.float32, "cpu"), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(actv=1), TypeError, "actv must be a torch.Tensor, got int"),
        (bad(actv=torch.zeros(1, 8, 4, 6).permute(0, 2, 3, 1)), ValueError, "actv must be channels-last"),
        (bad(actv=torch.zeros(1, 4, 6, 8).half()), TypeError, "actv must have the dtype of x"),
        (bad(x=torch.zeros(1, 4, 6, 5, 1)), ValueError, "x must have shape .*got 5 dimensions"),
        (bad(x=torch.zeros(1, 2, 6, 5)), ValueError, "x must have H and W of actv, 4 and 6, or half of both"),
        (bad(x=torch.zeros(2, 4, 6, 5)), ValueError, "x must have H and W of actv"),
        (bad(x=torch.zeros(1, 4, 6, 5).double()), TypeError, "x must have dtype"),
        (bad(weight=torch.zeros(10, 3, 3, 16)), ValueError, r"weight must have shape \(2C, 3, 3, 8\)"),
        (bad(weight=torch.zeros(8, 3, 3, 8)), ValueError, r"weight must have 10 rows \(gamma and beta\) or 5"),
        (bad(weight=torch.zeros(10, 8, 3, 3).permute(0, 2, 3, 1)), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(5)), ValueError, r"bias must have shape \(10\)"),
        (bad(bias=torch.zeros(10).half()), TypeError, "bias must have dtype float32"),
        (bad(stats=torch.zeros(1, 5)), ValueError, "stats must have shape"),
        (bad(stats=torch.zeros(1, 5, 2, device="meta")), ValueError, "stats must be on the device of x"),
        (bad(out=torch.zeros(1, 4, 6, 6)), ValueError, r"out must have shape \(1, 4, 6, 5\)"),
        (bad(out=torch.zeros(1, 4, 6, 5).half()), TypeError, "out must have the dtype of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.spade_conv(**arguments)


def test_overlapping_out_is_refused() -> None:
    arguments = bad()
    with pytest.raises(ValueError, match="out must not overlap x"):
        ops.spade_conv(**arguments, out=arguments["x"])


def test_packing_refuses_what_does_not_fit() -> None:
    weight, bias = torch.zeros(6, 4, 3, 3), torch.zeros(6)
    with pytest.raises(ValueError, match=r"gamma_weight must have shape \(C, K, 3, 3\)"):
        ops.pack_gamma_weight(torch.zeros(6, 4, 1, 1), bias)
    with pytest.raises(ValueError, match=r"beta_weight must have shape \(6, 4, 3, 3\)"):
        ops.pack_spade_weight(weight, bias, weight[:3], bias[:3])
    with pytest.raises(ValueError, match="beta_bias must have shape"):
        ops.pack_spade_weight(weight, bias, weight, bias[:3])
