"""spade_shortcut: the published SPADE and 1x1 conv; the three ops it stands for; slices, classes, half-size x."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref, rewrites
from lpkernels._channels_last import pixels, planes
from lpkernels.models.blocks import SPADE
from tests.ops import contract
from tests.ops.conv_inputs import (
    assert_untouched,
    assert_within_pytorchs_own_error,
    conv_weight,
    exact,
    normal,
    skip_reason,
    sliced,
)


@dataclass(frozen=True)
class Case:
    """Sizes of one call; ``half``: x of half the size; ``classes``: actv is the grid that stands for the size."""

    batch: int
    height: int
    width: int
    hidden: int
    channels: int
    outputs: int
    half: bool = False
    classes: bool = False


SMALL = [
    Case(1, 3, 5, 8, 32, 7),
    Case(2, 4, 6, 3, 5, 9, half=True),
    Case(3, 1, 1, 4, 7, 1),
    Case(2, 12, 8, 16, 6, 8, half=True, classes=True),
    Case(1, 4, 4, 8, 32, 32, classes=True),
]
HOPPER = [
    Case(1, 256, 256, 128, 256, 64, half=True, classes=True),
    Case(3, 36, 44, 128, 256, 64, half=True, classes=True),
    Case(2, 4, 260, 64, 256, 64, classes=True),
    Case(1, 128, 128, 128, 256, 64, half=True),
    Case(3, 33, 47, 64, 256, 64),
    Case(1, 1, 1, 64, 256, 64),
]


def make_inputs(case: Case, dtype: torch.dtype, device: str, parts: int = 0) -> list[Tensor]:
    """Hidden activations, packed weights and bias, x far from zero mean, its statistics, in ``parts`` if asked."""
    convs = [
        conv_weight(case.outputs, case.channels, 1, 1, seed=7),
        normal(case.outputs, seed=8),
        conv_weight(case.channels, case.hidden, 3, 3, seed=1),
        normal(case.channels, seed=2),
        conv_weight(case.channels, case.hidden, 3, 3, seed=4),
        normal(case.channels, seed=5),
    ]
    weight, bias, shortcut = ops.pack_shortcut_weight(*convs)
    height, width = case.height, case.width
    if case.classes:
        weight, height, width = ops.pack_class_weight(weight), height // 4 * 3, width // 4 * 3
    actv = normal(case.batch, height, width, case.hidden, seed=0).relu()
    scale = 2 if case.half else 1
    x = (2 + 3 * normal(case.batch, case.height // scale, case.width // scale, case.channels, seed=6)).to(dtype)
    stats = ref.channel_parts(x.float(), parts) if parts else ref.instance_norm_stats(x)
    tensors = actv.to(dtype), weight.to(dtype), bias, shortcut.to(dtype), x, stats
    return [tensor.to(device) for tensor in tensors]


def answer(*inputs: Tensor) -> tuple[Tensor]:
    return (ops.spade_shortcut(*inputs),)


def answer_ref(*inputs: Tensor) -> tuple[Tensor]:
    return (ref.spade_shortcut(*inputs),)


def of_torch(*inputs: Tensor) -> tuple[Tensor]:
    """Backend torch, called past the question whether it is meant for the device."""
    out = torch.empty_like(answer_ref(*inputs)[0])
    ops.registry()["spade_shortcut"].backends["torch"].run(*inputs, out)
    return (out,)


def published(
    channels: int, outputs: int, half: bool, size: tuple[int, int, int]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """In float64: actv, x and its statistics; conv_s, gamma and beta; conv_s of the SPADE."""
    torch.manual_seed(0)
    batch, height, width = size
    spade, shortcut = SPADE(channels, 4).double(), torch.randn(outputs, channels, 1, 1).double()
    x = torch.randn(batch, channels, height, width).double()
    large = F.interpolate(x, scale_factor=2) if half else x
    feature = F.interpolate(torch.randn(batch, 4, 6, 4).double(), size=large.shape[2:], mode="nearest")
    shift = torch.randn(outputs).double()
    expected = F.conv2d(spade(large, feature), shortcut, shift)
    gamma, beta = spade.mlp_gamma, spade.mlp_beta
    convs = [shortcut, shift, gamma.weight, gamma.bias, beta.weight, beta.bias]
    activations = [pixels(spade.mlp_shared(feature)).contiguous(), pixels(x).contiguous()]
    return [*activations, ref.instance_norm_stats(activations[1])], convs, pixels(expected)


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([1, 5, 32]),
    st.sampled_from([1, 6]),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4)),
    st.booleans(),
)
def test_reference_is_the_published_shortcut(
    channels: int, outputs: int, size: tuple[int, int, int], half: bool
) -> None:
    (actv, x, stats), convs, expected = published(channels, outputs, half, size)
    weight, bias, shortcut = ops.pack_shortcut_weight(*convs)
    assert contract.relative_error(ref.spade_shortcut(actv, weight, bias, shortcut, x, stats), expected) < 1e-10


@pytest.mark.parametrize("half", [False, True])
def test_is_the_three_ops_it_stands_for(half: bool) -> None:
    (actv, x, stats), convs, _ = published(6, 3, half, (2, 5, 4))
    conv_s, shift, gamma_weight, gamma_bias, beta_weight, beta_bias = convs
    weight, bias = ops.pack_gamma_weight(gamma_weight, gamma_bias)
    scaled = ref.spade_conv(actv, weight, bias, x, stats, 1.0)
    beta, beta_shift = rewrites.merge_shortcut_beta(conv_s, beta_weight, beta_bias)
    narrow = ref.conv_act(scaled, ops.pack_conv_weight(conv_s, 1), shift)
    expected = ref.conv_act(actv, ops.pack_conv_weight(beta, 1), beta_shift, residual=narrow)
    packed, packed_bias, shortcut = ops.pack_shortcut_weight(*convs)
    actual = ref.spade_shortcut(actv, packed, packed_bias, shortcut, x, stats)
    assert contract.relative_error(actual, expected) < 1e-10


def test_classes_are_read_as_the_image() -> None:
    case = SMALL[3]
    actv, weight, bias, shortcut, x, stats = exact(make_inputs(case, torch.float32, "cpu"))
    corner = weight.unflatten(0, (16, -1))[0]  # phase (0, 0) sums nothing: it is the original kernel
    image = pixels(rewrites.expand_classes(planes(actv)))
    expected = ref.spade_shortcut(image, corner, bias, shortcut, x, stats)
    actual = ops.spade_shortcut(*make_inputs(case, torch.float32, "cpu"))
    assert actual.shape == (case.batch, case.height, case.width, case.outputs)
    assert contract.relative_error(actual, expected) < 3e-6


def test_packing_is_the_rewrite_with_a_wide_bias() -> None:
    conv_s, gamma, beta = torch.randn(2, 6, 1, 1).half(), torch.randn(6, 4, 3, 3).half(), torch.randn(6, 4, 3, 3).half()
    shift, gamma_bias, beta_bias = torch.randn(2).half(), torch.randn(6).half(), torch.randn(6).half()
    weight, bias, shortcut = ops.pack_shortcut_weight(conv_s, shift, gamma, gamma_bias, beta, beta_bias)
    assert (weight.shape, bias.shape, shortcut.shape) == ((8, 3, 3, 4), (8,), (2, 6))
    assert weight.is_contiguous()
    assert (weight.dtype, bias.dtype, shortcut.dtype) == (torch.float16, torch.float32, torch.float16)
    assert torch.equal(planes(weight[:6]), gamma)
    assert torch.equal(bias[:6], gamma_bias.float() + 1)
    assert torch.equal(shortcut, conv_s[:, :, 0, 0])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", SMALL)
def test_matches_reference(case: Case, device: str) -> None:
    inputs = make_inputs(case, torch.float32, device)
    contract.assert_close_to_reference(answer, answer_ref, inputs, [tensor.cpu() for tensor in exact(inputs)])


@pytest.mark.parametrize("case", SMALL)
def test_torch_matches_reference(case: Case) -> None:
    inputs = make_inputs(case, torch.float32, "cpu")
    contract.assert_close_to_reference(of_torch, answer_ref, inputs, exact(inputs))


@pytest.mark.parametrize("case", SMALL)
def test_statistics_in_parts(case: Case, device: str) -> None:
    truth = ref.spade_shortcut(*exact(make_inputs(case, torch.float32, "cpu")))
    x = make_inputs(case, torch.float32, "cpu")[4]
    for parts in (1, x.shape[1] * x.shape[2]):
        actual = ops.spade_shortcut(*make_inputs(case, torch.float32, device, parts))
        assert contract.relative_error(actual, truth) < 1e-5


def check_slices(case: Case, dtype: torch.dtype, device: str) -> None:
    actv, *weights, x, stats = make_inputs(case, dtype, device)
    expected = ops.spade_shortcut(actv, *weights, x, stats)
    out, buffer = sliced(torch.zeros_like(expected))
    out.fill_(float("nan"))
    assert ops.spade_shortcut(sliced(actv)[0], *weights, sliced(x)[0], stats, out=out) is out
    assert_untouched(buffer, out)
    contract.assert_same([out], [expected])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", SMALL)
def test_slices(case: Case, device: str) -> None:
    check_slices(case, torch.float32, device)


@pytest.mark.parametrize("case", [SMALL[1], SMALL[3]])
def test_compile(case: Case, device: str) -> None:
    contract.check_compile(answer, make_inputs(case, torch.float32, device))


def reason(case: Case, dtype: torch.dtype = torch.float16, parts: int = 0) -> str | None:
    inputs = make_inputs(case, dtype, "cpu", parts)
    refuses = ops.registry()["spade_shortcut"].backends["cuda"].refuses
    return refuses(tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs))


def test_hopper_kernel_says_what_it_refuses() -> None:
    assert reason(Case(1, 2, 2, 64, 256, 64)) is None
    assert reason(Case(1, 4, 4, 128, 256, 64, half=True, classes=True), parts=2) is None
    assert "K in multiples of 64" in str(reason(Case(1, 2, 2, 32, 256, 64)))
    assert "256 channels and 64 outputs; got torch.float16, 64, 128, 64" in str(reason(Case(1, 2, 2, 64, 128, 64)))
    assert "256 channels and 64 outputs" in str(reason(Case(1, 2, 2, 64, 256, 32)))
    assert "made for float16" in str(reason(Case(1, 2, 2, 64, 256, 64), torch.float32))
    assert "at most 32 parts, got 64" in str(reason(Case(1, 8, 8, 64, 256, 64), parts=64))


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", HOPPER)
def test_half_within_pytorchs_own_error(case: Case) -> None:
    inputs = make_inputs(case, torch.float16, "cuda")
    if missing := skip_reason("spade_shortcut", "cuda", inputs):
        pytest.skip(missing)
    assert_within_pytorchs_own_error(answer, answer_ref, inputs, "cuda")
    check_slices(case, torch.float16, "cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("parts", [2, 32, 64])
@pytest.mark.parametrize("case", [HOPPER[0], HOPPER[3]])
def test_half_statistics_in_parts(case: Case, parts: int) -> None:
    inputs = make_inputs(case, torch.float16, "cuda", parts)
    truth = ref.spade_shortcut(*exact(inputs))
    with ops.use_backend("torch"):
        own = contract.relative_error(ops.spade_shortcut(*inputs), truth)
    assert contract.relative_error(ops.spade_shortcut(*inputs), truth) <= 1.5 * own + contract.ULPS[torch.float16]


@pytest.mark.gpu
@pytest.mark.parametrize("place", [(0, 0), (37, 5), (63, 255)])
def test_weights_of_the_shortcut_are_where_they_belong(place: tuple[int, int]) -> None:
    """One weight of conv_s alone; with no beta all other outputs are zero."""
    actv, weight, bias, shortcut, x, stats = make_inputs(HOPPER[4], torch.float16, "cuda")
    weight[256:], bias[256:] = 0, 0
    shortcut.zero_()[place] = 1
    y = ops.spade_shortcut(actv, weight, bias, shortcut, x, stats)
    expected = ref.spade_conv(actv, weight[:256], bias[:256], x, stats, 1.0)[..., place[1]]
    assert contract.relative_error(y[..., place[0]], expected) < 1e-3
    y[..., place[0]] = 0
    assert not y.any()


@pytest.mark.gpu
@pytest.mark.parametrize("case", HOPPER[:2])
def test_repeatable(case: Case) -> None:
    contract.check_repeatable(answer, make_inputs(case, torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(answer, make_inputs(HOPPER[3], torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)
        inputs[4].add_(1)

    contract.check_graph_capture(answer, make_inputs(HOPPER[0], torch.float16, "cuda"), change)


@pytest.mark.gpu
def test_opcheck() -> None:
    inputs = make_inputs(HOPPER[5], torch.float16, "cuda")
    if missing := skip_reason("spade_shortcut", "cuda", inputs):
        pytest.skip(missing)
    contract.check_opcheck(torch.ops.lpkernels.spade_shortcut, [*inputs, torch.zeros_like(answer(*inputs)[0])])


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs(SMALL[0], torch.float32, device)
    inputs[4].requires_grad_()
    with pytest.raises(RuntimeError, match="spade_shortcut has no gradient"):
        ops.spade_shortcut(*inputs)


def bad(**changed: object) -> dict[str, object]:
    names = ("actv", "weight", "bias", "shortcut", "x", "stats")
    inputs = make_inputs(Case(1, 4, 6, 8, 5, 3), torch.float32, "cpu")
    return {**dict(zip(names, inputs, strict=True)), **changed}


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
        (bad(weight=torch.zeros(8, 3, 3, 16)), ValueError, r"weight must have shape \(C \+ O, 3, 3, 8\)"),
        (
            bad(weight=torch.zeros(10, 3, 3, 8)),
            ValueError,
            "weight must have 8 rows, for the 5 channels of x",
        ),
        (bad(weight=torch.zeros(128, 3, 3, 8)), ValueError, "actv must be a grid of classes"),
        (bad(weight=torch.zeros(8, 8, 3, 3).permute(0, 2, 3, 1)), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(5)), ValueError, r"bias must have shape \(8\)"),
        (bad(bias=torch.zeros(8).half()), TypeError, "bias must have dtype float32"),
        (bad(shortcut=None), TypeError, "shortcut must be a torch.Tensor"),
        (bad(shortcut=torch.zeros(3, 6)), ValueError, r"shortcut must have shape \(O, 5\)"),
        (bad(shortcut=torch.zeros(3, 5).half()), TypeError, "shortcut must have the dtype of x"),
        (bad(shortcut=torch.zeros(5, 3).T), ValueError, "shortcut must be contiguous"),
        (bad(stats=torch.zeros(1, 5)), ValueError, "stats must have shape"),
        (bad(stats=torch.zeros(1, 5, 2, device="meta")), ValueError, "stats must be on the device of x"),
        (bad(out=torch.zeros(1, 4, 6, 5)), ValueError, r"out must have shape \(1, 4, 6, 3\)"),
        (bad(out=torch.zeros(1, 4, 6, 3).half()), TypeError, "out must have the dtype of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.spade_shortcut(**arguments)


def test_overlapping_out_is_refused() -> None:
    arguments = bad()
    buffer = torch.zeros(1, 4, 6, 8)
    arguments["actv"] = buffer
    with pytest.raises(ValueError, match="out must not overlap actv"):
        ops.spade_shortcut(**arguments, out=buffer[..., 2:5])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 6, 3, 3), r"shortcut must have shape \(O, 6, 1, 1\)"),
        (1, torch.zeros(4), r"shortcut_bias must have shape \(3\)"),
        (2, torch.zeros(6, 4, 1, 1), r"gamma_weight must have shape \(C, K, 3, 3\)"),
        (4, torch.zeros(3, 4, 3, 3), r"beta_weight must have shape \(6, 4, 3, 3\)"),
        (5, torch.zeros(3), r"beta_bias must have shape \(6\)"),
    ],
)
def test_packing_refuses_what_does_not_fit(place: int, value: Tensor, message: str) -> None:
    weight, bias = torch.zeros(6, 4, 3, 3), torch.zeros(6)
    convs = [torch.zeros(3, 6, 1, 1), torch.zeros(3), weight, bias, weight, bias]
    convs[place] = value
    with pytest.raises(ValueError, match=message):
        ops.pack_shortcut_weight(*convs)
