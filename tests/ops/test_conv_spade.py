"""conv_spade: every backend against the published conv, instance norm and SPADE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref
from lpkernels.models.blocks import SPADE
from tests.ops import contract
from tests.ops.conv_inputs import (
    GPU_BACKENDS,
    HALVES,
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
    """Sizes of x (B, H, W, C), channels of actv, outputs, and whether there is a residual."""

    x: tuple[int, int, int, int]
    hidden: int
    outputs: int
    residual: bool = False

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
        """x, weight, bias, actv, spade_weight, spade_bias, negative_slope, residual."""
        weight = ops.pack_conv_weight(conv_weight(self.outputs, self.x[-1], 3, 3), multiple=1)
        convs = [
            part
            for seed in (4, 6)
            for part in (conv_weight(self.outputs, self.hidden, 3, 3, seed=seed), normal(self.outputs, seed=seed + 1))
        ]
        spade_weight, spade_bias = ops.pack_spade_weight(*convs)
        x, bias = normal(*self.x, seed=0), normal(self.outputs, seed=2)
        actv = normal(*self.x[:3], self.hidden, seed=3).relu()
        residual = normal(*self.x[:3], self.outputs, seed=8).to(device, dtype) if self.residual else None
        first = [x.to(device, dtype), weight.to(device, dtype), bias.to(device)]
        second = [actv.to(device, dtype), spade_weight.to(device, dtype), spade_bias.to(device)]
        return [*first, *second, 0.2, residual]


SMALL = [
    Case((2, 5, 7, 8), 8, 32),
    Case((1, 24, 24, 3), 4, 5, residual=True),  # several blocks of pixels of Triton's kernels
    Case((3, 1, 3, 16), 3, 70, residual=True),
]
ONE_WAVE = [  # of tiles of 128 pixels by 128 outputs, on a GPU of 132 multiprocessors
    Case((1, 64, 64, 512), 128, 512, residual=True),
    Case((1, 64, 64, 256), 128, 512),  # fc
    Case((2, 64, 64, 64), 64, 256, residual=True),
    Case((3, 22, 64, 80), 192, 512),  # channels that are no multiple of 64
    Case((1, 64, 128, 128), 128, 256, residual=True),
]
OTHERS = [
    Case((2, 64, 64, 512), 128, 512, residual=True),
    Case((1, 32, 64, 64), 64, 128),  # statistics in parts
    Case((3, 33, 47, 64), 128, 96, residual=True),
    Case((1, 128, 128, 64), 64, 512),
]
NAMES = ("x", "weight", "bias", "actv", "spade_weight", "spade_bias", "negative_slope", "residual")


def with_y(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The answer, and what came before the SPADE."""
    x, weight, *_ = inputs
    y = x.new_empty(*x.shape[:3], weight.shape[0])
    return ops.conv_spade(*inputs, y=y), y


def alone(*inputs: Any) -> tuple[Tensor]:
    return (ops.conv_spade(*inputs),)


def assert_matches(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    inputs = case.inputs(dtype, device)
    truths = ref.conv_spade(*exact(inputs))
    owns = ref.conv_spade_in(dtype, *[value.cpu() if isinstance(value, Tensor) else value for value in inputs])
    for actual, own, truth in zip(with_y(*inputs), owns, truths, strict=True):
        assert (actual.shape, actual.dtype) == (truth.shape, dtype)
        bound = 1.5 * contract.relative_error(own, truth) + contract.ULPS[dtype]
        assert contract.relative_error(actual, truth) <= bound
    contract.assert_same(alone(*inputs), with_y(*inputs)[:1])


def nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([1, 5, 32, 64]), st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4)), st.booleans()
)
def test_reference_is_the_published_conv_and_spade(outputs: int, size: tuple[int, int, int], residual: bool) -> None:
    torch.manual_seed(0)
    batch, height, width = size
    spade, conv = SPADE(outputs, 4).double(), torch.nn.Conv2d(3, outputs, 3, padding=1).double()
    x, feature = torch.randn(batch, 3, height, width).double(), torch.randn(batch, 4, 6, 4).double()
    added = torch.randn(batch, outputs, height, width).double() if residual else None
    y = conv(x) if added is None else conv(x) + added
    actv = spade.mlp_shared(F.interpolate(feature, size=(height, width), mode="nearest"))
    gamma, beta = spade.mlp_gamma, spade.mlp_beta
    packed = ops.pack_spade_weight(gamma.weight, gamma.bias, beta.weight, beta.bias)
    skip = None if added is None else nhwc(added)
    actual = ref.conv_spade(nhwc(x), nhwc(conv.weight), conv.bias, nhwc(actv), *packed, residual=skip)
    assert contract.relative_error(actual[1], nhwc(y)) < 1e-10
    assert contract.relative_error(actual[0], nhwc(F.leaky_relu(spade(y, feature), 0.2))) < 1e-10


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", SMALL)
def test_matches_reference(case: Case, device: str) -> None:
    assert_matches(case, torch.float32, device)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_triton_matches_reference(case: Case, dtype: torch.dtype) -> None:
    with ops.use_backend("triton"):
        assert_matches(case, dtype)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["triton", "ref"])
@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_is_conv_act_and_spade_conv(case: Case, backend: str, dtype: torch.dtype) -> None:
    x, weight, bias, actv, spade_weight, spade_bias, slope, residual = inputs = case.inputs(dtype)
    with ops.use_backend(backend):
        stats = torch.empty(x.shape[0], case.outputs, 2)
        y = ops.conv_act(x, weight, bias, residual=residual, stats=stats)
        out = ops.spade_conv(actv, spade_weight, spade_bias, y, stats, slope)
        contract.assert_same(with_y(*inputs), [out, y])


def slices(inputs: list[Any]) -> list[Any]:
    """x, actv and the residual as channels of wider buffers of NaN."""
    places = (0, 3, 7)
    return [sliced(v)[0] if i in places and v is not None else v for i, v in enumerate(inputs)]


def check_slices(inputs: list[Any]) -> None:
    expected, kept = with_y(*inputs)
    out, buffer = sliced(torch.full_like(expected, float("nan")))
    y, other = sliced(torch.full_like(kept, float("nan")), before=16)
    assert ops.conv_spade(*slices(inputs), y=y, out=out) is out
    assert_untouched(buffer, out)
    assert_untouched(other, y)
    contract.assert_same([out, y], [expected, kept])


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["triton", "ref"])
@pytest.mark.parametrize("case", SMALL)
def test_slices_of_wider_buffers(case: Case, backend: str) -> None:
    with ops.use_backend(backend):
        check_slices(case.inputs())


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_slopes(slope: float, device: str) -> None:
    inputs = SMALL[1].inputs(device=device)
    inputs[6] = 1.0
    plain, _ = ref.conv_spade(*exact(inputs))
    inputs[6] = slope
    assert contract.relative_error(ops.conv_spade(*inputs), plain if slope else plain.relu()) < 1e-5


def tensors_alone(case: Case, dtype: torch.dtype, device: str) -> tuple[contract.Function, list[Tensor]]:
    """The op as a function of tensors, and these."""
    *others, slope, residual = case.inputs(dtype, device)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        return with_y(*inputs[:6], slope, inputs[6] if residual is not None else None)

    return run, others if residual is None else [*others, residual]


@pytest.mark.parametrize("case", SMALL[:2])
def test_compile(case: Case, device: str) -> None:
    contract.check_compile(*tensors_alone(case, torch.float32, device))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", SMALL[:2])
def test_triton_opcheck_and_compile(case: Case) -> None:
    inputs = case.inputs()
    out, y = with_y(*inputs)
    contract.check_opcheck(torch.ops.lpkernels.conv_spade_triton, [*inputs, y, out])
    contract.check_opcheck(torch.ops.lpkernels.conv_spade_triton, [*inputs, None, out])
    with ops.use_backend("triton"):
        contract.check_compile(*tensors_alone(case, torch.float32, "cpu"))


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("case", [*ONE_WAVE, *OTHERS])
def test_half_within_pytorchs_own_error(case: Case, backend: str) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    if reason := skip_reason("conv_spade", backend, inputs):
        pytest.skip(reason)
    assert_within_pytorchs_own_error(with_y, ref.conv_spade, inputs, backend)
    assert_within_pytorchs_own_error(alone, lambda *given: ref.conv_spade(*given)[:1], inputs, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*ONE_WAVE, *OTHERS])
def test_y_is_what_conv_act_gives(case: Case) -> None:
    x, weight, bias, *_, residual = inputs = case.inputs(torch.float16, "cuda")
    if reason := skip_reason("conv_spade", "cuda", inputs):
        pytest.skip(reason)
    y = with_y(*inputs)[1]
    assert contract.relative_error(y, ops.conv_act(x, weight, bias, residual=residual)) < contract.ULPS[torch.float16]


@pytest.mark.gpu
@pytest.mark.parametrize("case", ONE_WAVE)
def test_statistics_are_those_of_each_image_and_channel(case: Case) -> None:
    """With images and channels far apart: a mean or a deviation from elsewhere would be seen."""
    inputs = case.inputs(torch.float16, "cuda")
    if reason := skip_reason("conv_spade", "cuda", inputs):
        pytest.skip(reason)
    steps = torch.arange(inputs[0].shape[0], device="cuda").half() + 1
    inputs[0] *= steps[:, None, None, None]
    inputs[2] += torch.arange(case.outputs, device="cuda") % 61
    assert_within_pytorchs_own_error(with_y, ref.conv_spade, inputs, "cuda")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", [*ONE_WAVE, *OTHERS])
def test_slices_on_the_gpu(case: Case) -> None:
    check_slices(case.inputs(torch.float16, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [ONE_WAVE[0], ONE_WAVE[2], OTHERS[0]])
def test_repeatable(case: Case) -> None:
    contract.check_repeatable(*tensors_alone(case, torch.float16, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [ONE_WAVE[0], OTHERS[0]])
def test_second_stream(case: Case) -> None:
    contract.check_second_stream(*tensors_alone(case, torch.float16, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [ONE_WAVE[0], OTHERS[0]])
def test_graph_capture(case: Case) -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)
        inputs[3].mul_(0.5)

    contract.check_graph_capture(*tensors_alone(case, torch.float16, "cuda"), change)


@pytest.mark.gpu
def test_one_after_the_other_in_a_graph() -> None:
    """Each kernel starts early and waits for the one before it; many replays of many."""
    run, inputs = tensors_alone(ONE_WAVE[0], torch.float16, "cuda")
    expected = run(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = [run(*inputs) for _ in range(12)]
    for _ in range(100):
        graph.replay()
    torch.cuda.synchronize()
    for answer in answers:
        contract.assert_same(answer, expected)


@pytest.mark.gpu
def test_on_two_streams_at_once() -> None:
    """Each wants the whole GPU, and neither reads what the other writes."""
    run, inputs = tensors_alone(ONE_WAVE[0], torch.float16, "cuda")
    expected = run(*inputs)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    answers = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                answers.append(run(*inputs))
    torch.cuda.synchronize()
    for answer in answers:
        contract.assert_same(answer, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [ONE_WAVE[0], OTHERS[2]])
def test_opcheck_of_the_cuda_kernel(case: Case) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    if reason := skip_reason("conv_spade", "cuda", inputs):
        pytest.skip(reason)
    out, y = with_y(*inputs)
    contract.check_opcheck(torch.ops.lpkernels.conv_spade, [*inputs, y, out])
    contract.check_opcheck(torch.ops.lpkernels.conv_spade, [*inputs, None, out])
    contract.check_compile(*tensors_alone(case, torch.float16, "cuda"))


@pytest.mark.parametrize("index", [0, 3, 7])
def test_gradients_are_refused(index: int) -> None:
    inputs = SMALL[1].inputs()
    inputs[index].requires_grad_()
    with pytest.raises(RuntimeError, match="conv_spade has no gradient"):
        ops.conv_spade(*inputs)


def test_hopper_kernel_says_what_it_refuses() -> None:
    refuses = ops.registry()["conv_spade"].backends["cuda"].refuses

    def reason(case: Case, dtype: torch.dtype = torch.float16) -> str:
        tensors = [value for value in case.inputs(dtype) if isinstance(value, Tensor)]
        return str(refuses(tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)))

    assert reason(Case((1, 2, 2, 16), 64, 32)) == "None"
    assert "got torch.float16, 24, 64, 32" in reason(Case((1, 2, 2, 24), 64, 32))
    assert "got torch.float16, 16, 32, 32" in reason(Case((1, 2, 2, 16), 32, 32))
    assert "got torch.float16, 16, 64, 16" in reason(Case((1, 2, 2, 16), 64, 16))
    assert "made for float16" in reason(Case((1, 2, 2, 16), 64, 32), torch.float32)


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(NAMES, Case((1, 4, 6, 8), 3, 5).inputs(), strict=True)), **changed}


PLANES = torch.zeros(1, 5, 4, 6).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=1), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(1, 4, 6, 8, 1)), ValueError, "x must have shape .*got 5 dimensions"),
        (bad(x=torch.zeros(1, 4, 6, 8).double()), TypeError, "x must have dtype"),
        (bad(weight=torch.zeros(5, 1, 1, 8)), ValueError, r"weight must have shape \(O, 3, 3, 8\)"),
        (bad(weight=torch.zeros(5, 8, 3, 3).permute(0, 2, 3, 1)), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(10)), ValueError, r"bias must have shape \(5\)"),
        (bad(bias=torch.zeros(5).half()), TypeError, "bias must have dtype float32"),
        (bad(actv=torch.zeros(1, 2, 3, 3)), ValueError, r"actv must have shape \(1, 4, 6, K\)"),
        (bad(actv=torch.zeros(1, 4, 6, 3).half()), TypeError, "actv must have the dtype of x"),
        (bad(spade_weight=torch.zeros(5, 3, 3, 3)), ValueError, r"spade_weight must have shape \(10, 3, 3, 3\)"),
        (bad(spade_bias=torch.zeros(5)), ValueError, r"spade_bias must have shape \(10\)"),
        (bad(residual=torch.zeros(1, 2, 3, 5)), ValueError, r"residual must have shape \(1, 4, 6, 5\)"),
        (bad(residual=PLANES), ValueError, "residual must be channels-last"),
        (bad(residual=torch.zeros(1, 4, 6, 5, device="meta")), ValueError, "residual must be on the device of x"),
        (bad(y=torch.zeros(1, 4, 6, 6)), ValueError, r"y must have shape \(1, 4, 6, 5\)"),
        (bad(y=torch.zeros(1, 4, 6, 5).half()), TypeError, "y must have the dtype of x"),
        (bad(out=PLANES), ValueError, "out must be channels-last"),
        (bad(out=torch.zeros(1, 4, 6, 5).half()), TypeError, "out must have the dtype of x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.conv_spade(**arguments)


def test_overlaps_are_refused() -> None:
    shared = torch.zeros(1, 4, 6, 5)
    for name in ("y", "out"):
        with pytest.raises(ValueError, match=f"{name} must not overlap residual"):
            ops.conv_spade(**bad(residual=shared, **{name: shared}))
    with pytest.raises(ValueError, match="out must not overlap y"):
        ops.conv_spade(**bad(y=shared, out=shared))
