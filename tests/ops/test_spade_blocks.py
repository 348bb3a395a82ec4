"""spade_blocks: every backend against the published residual blocks, and against conv_spade step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref
from lpkernels.fused._weights import plain
from lpkernels.models.blocks import SPADEResnetBlock
from tests.ops import contract
from tests.ops.conv_inputs import (
    GPU_BACKENDS,
    HALVES,
    assert_within_pytorchs_own_error,
    conv_weight,
    exact,
    normal,
    skip_reason,
    sliced,
)


@dataclass(frozen=True)
class Case:
    """Sizes of x (B, H, W, C), channels of a step of actv, steps."""

    x: tuple[int, int, int, int]
    hidden: int
    steps: int

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
        """x, dx, actv, weight, bias, spade_weight, spade_bias, negative_slope."""
        *pixels, channels = self.x
        weights, biases, packed = [], [], []
        for step in range(self.steps):
            seeds = range(100 + 10 * step, 110 + 10 * step)
            weights.append(ops.pack_conv_weight(conv_weight(channels, channels, 3, 3, seed=seeds[0]), multiple=1))
            biases.append(normal(channels, seed=seeds[1]))
            gamma, beta = (conv_weight(channels, self.hidden, 3, 3, seed=seeds[i]) for i in (2, 3))
            packed.append(
                ops.pack_spade_weight(gamma, normal(channels, seed=seeds[4]), beta, normal(channels, seed=seeds[5]))
            )
        spade_weights, spade_biases = zip(*packed, strict=True)
        activations = [normal(*self.x, seed=0), normal(*self.x, seed=1)]
        activations.append(normal(*pixels, self.steps * self.hidden, seed=2).relu())
        floats = [torch.stack(biases).to(device), torch.stack(spade_biases).to(device)]
        halves = [torch.stack(weights).to(device, dtype), torch.stack(spade_weights).to(device, dtype)]
        first = [activation.to(device, dtype) for activation in activations]
        return [*first, halves[0], floats[0], halves[1], floats[1], 0.2]


SMALL = [
    Case((2, 5, 7, 8), 4, 2),
    Case((1, 3, 4, 5), 3, 3),
    Case((3, 3, 9, 16), 8, 4),
    Case((1, 24, 24, 4), 3, 5),  # several blocks of pixels of Triton's kernels
]
ONE_WAVE = [  # of tiles of 128 pixels by 128 outputs, on a GPU of 132 multiprocessors
    Case((1, 64, 64, 512), 128, 11),
    Case((2, 64, 64, 256), 64, 4),
    Case((3, 22, 64, 512), 192, 3),
    Case((1, 64, 128, 256), 128, 2),
]
OTHERS = [
    Case((2, 64, 64, 512), 128, 4),
    Case((1, 32, 64, 128), 64, 3),
    Case((3, 33, 47, 96), 64, 3),
]
NAMES = ("x", "dx", "actv", "weight", "bias", "spade_weight", "spade_bias", "negative_slope")


def of_conv_spade(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The same, each step a call of conv_spade."""
    x, dx, actv, weight, bias, spade_weight, spade_bias, slope = inputs
    hidden = actv.shape[-1] // weight.shape[0]
    for step in range(weight.shape[0]):
        own = weight[step], bias[step], actv[..., hidden * step :][..., :hidden], spade_weight[step], spade_bias[step]
        if step % 2:
            y = torch.empty_like(x, memory_format=torch.contiguous_format)
            dx = ops.conv_spade(dx, *own, slope, residual=x, y=y)
            x = y
        else:
            dx = ops.conv_spade(dx, *own, slope)
    return x, dx


def tensors_alone(case: Case, dtype: torch.dtype, device: str) -> tuple[contract.Function, list[Tensor]]:
    """The op as a function of tensors, and these."""
    *tensors, slope = case.inputs(dtype, device)
    return lambda *inputs: ops.spade_blocks(*inputs, slope), tensors


def assert_matches(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    inputs = case.inputs(dtype, device)
    truths = ref.spade_blocks(*exact(inputs))
    owns = ref.spade_blocks_in(dtype, *[value.cpu() if isinstance(value, Tensor) else value for value in inputs])
    for actual, own, truth in zip(ops.spade_blocks(*inputs), owns, truths, strict=True):
        assert (actual.shape, actual.dtype) == (truth.shape, dtype)
        assert actual.is_contiguous()
        bound = 1.5 * contract.relative_error(own, truth) + contract.ULPS[dtype]
        assert contract.relative_error(actual, truth) <= bound


def nhwc(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("batch", [1, 2])
def test_reference_is_the_published_blocks(batch: int) -> None:
    """Two of them, and the first SPADE of a third."""
    torch.manual_seed(0)
    blocks = [SPADEResnetBlock(6, 6, 4).double().eval() for _ in range(3)]
    x, feature = torch.randn(batch, 6, 5, 4).double(), torch.randn(batch, 4, 5, 4).double()
    with torch.no_grad():
        y = blocks[1](blocks[0](x, feature), feature)
        after = F.leaky_relu(blocks[2].norm_0(y, feature), 0.2)
        dx = F.leaky_relu(blocks[0].norm_0(x, feature), 0.2)
        convs = [conv for block in blocks for conv in (block.conv_0, block.conv_1)][:4]
        norms = [norm for block in blocks for norm in (block.norm_0, block.norm_1)][1:5]
        packed = [
            ops.pack_spade_weight(n.mlp_gamma.weight, n.mlp_gamma.bias, n.mlp_beta.weight, n.mlp_beta.bias)
            for n in norms
        ]
        actv = torch.cat([norm.mlp_shared(feature) for norm in norms], 1)
        weights, biases = zip(*map(plain, convs), strict=True)
        weight, bias = torch.stack([nhwc(taps) for taps in weights]), torch.stack(biases)
        spade_weight, spade_bias = map(torch.stack, zip(*packed, strict=True))
        actual = ref.spade_blocks(nhwc(x), nhwc(dx), nhwc(actv), weight, bias, spade_weight, spade_bias)
    assert contract.relative_error(actual[0], nhwc(y)) < 1e-10
    assert contract.relative_error(actual[1], nhwc(after)) < 1e-10


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
def test_is_conv_spade_step_by_step(case: Case, backend: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    with ops.use_backend(backend):
        contract.assert_same(ops.spade_blocks(*inputs), of_conv_spade(*inputs))


def slices(inputs: list[Any]) -> list[Any]:
    """x, dx and actv as channels of wider buffers of NaN."""
    return [sliced(value)[0] if i < 3 else value for i, value in enumerate(inputs)]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["triton", "ref"])
@pytest.mark.parametrize("case", SMALL)
def test_slices_of_wider_buffers(case: Case, backend: str) -> None:
    inputs = case.inputs()
    with ops.use_backend(backend):
        contract.assert_same(ops.spade_blocks(*slices(inputs)), ops.spade_blocks(*inputs))


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_slopes(slope: float, device: str) -> None:
    inputs = SMALL[0].inputs(device=device)
    inputs[-1] = slope
    for actual, truth in zip(ops.spade_blocks(*inputs), ref.spade_blocks(*exact(inputs)), strict=True):
        assert contract.relative_error(actual, truth) < 1e-5


def test_inputs_are_left_as_they_are(device: str) -> None:
    inputs = SMALL[2].inputs(device=device)
    before = [tensor.clone() for tensor in inputs[:-1]]
    ops.spade_blocks(*inputs)
    contract.assert_same(inputs[:-1], before)


@pytest.mark.parametrize("case", SMALL[:2])
def test_compile_and_shapes(case: Case, device: str) -> None:
    inputs = case.inputs(device=device)
    run, tensors = tensors_alone(case, torch.float32, device)
    contract.check_compile(run, tensors)
    assert [tuple(value.shape) for value in ops.spade_blocks(*[_on_meta(value) for value in inputs])] == 2 * [case.x]


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", SMALL[:2])
def test_triton_opcheck_and_compile(case: Case) -> None:
    contract.check_opcheck(torch.ops.lpkernels.spade_blocks_triton, case.inputs())
    with ops.use_backend("triton"):
        contract.check_compile(*tensors_alone(case, torch.float32, "cpu"))


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("case", [*ONE_WAVE, *OTHERS])
def test_half_within_pytorchs_own_error(case: Case, backend: str) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    if reason := skip_reason("spade_blocks", backend, inputs):
        pytest.skip(reason)
    assert_within_pytorchs_own_error(ops.spade_blocks, ref.spade_blocks, inputs, backend)


def skip_without_the_kernel(inputs: list[Any]) -> None:
    if reason := skip_reason("spade_blocks", "cuda", inputs):
        pytest.skip(reason)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", [*ONE_WAVE, *OTHERS])
def test_cuda_is_conv_spade_step_by_step(case: Case) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    skip_without_the_kernel(inputs)
    contract.assert_same(ops.spade_blocks(*inputs), of_conv_spade(*inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("case", ONE_WAVE)
def test_statistics_are_those_of_each_image_and_channel(case: Case) -> None:
    """With images and channels far apart: a mean or a deviation from elsewhere would be seen."""
    inputs = case.inputs(torch.float16, "cuda")
    skip_without_the_kernel(inputs)
    sizes = torch.arange(case.x[0], device="cuda").half() + 1
    for activation in inputs[:3]:
        activation *= sizes[:, None, None, None]
    inputs[4] += torch.arange(case.x[-1], device="cuda") % 61
    contract.assert_same(ops.spade_blocks(*inputs), of_conv_spade(*inputs))


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", [*ONE_WAVE, *OTHERS])
def test_slices_on_the_gpu(case: Case) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    contract.assert_same(ops.spade_blocks(*slices(inputs)), ops.spade_blocks(*inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*ONE_WAVE, OTHERS[0]])
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
        inputs[2].mul_(0.5)
        inputs[4].add_(1)

    contract.check_graph_capture(*tensors_alone(case, torch.float16, "cuda"), change)


@pytest.mark.gpu
def test_one_after_the_other_in_a_graph() -> None:
    """Each kernel starts early and waits for the one before it."""
    run, inputs = tensors_alone(ONE_WAVE[0], torch.float16, "cuda")
    expected = run(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = [run(*inputs) for _ in range(4)]
    for _ in range(100):
        graph.replay()
    torch.cuda.synchronize()
    for answer in answers:
        contract.assert_same(answer, expected)


@pytest.mark.gpu
def test_on_two_streams_at_once() -> None:
    """Each wants the whole GPU, and neither reads what the other writes."""
    run, inputs = tensors_alone(ONE_WAVE[1], torch.float16, "cuda")
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
@pytest.mark.parametrize("case", [ONE_WAVE[1], OTHERS[2]])
def test_opcheck_of_the_cuda_kernel(case: Case) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    skip_without_the_kernel(inputs)
    contract.check_opcheck(torch.ops.lpkernels.spade_blocks, inputs)
    run, tensors = tensors_alone(case, torch.float16, "cuda")
    contract.check_compile(run, tensors)
    contract.check_export(run, tensors, "spade_blocks")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_gradients_are_refused(index: int) -> None:
    inputs = SMALL[0].inputs()
    inputs[index].requires_grad_()
    with pytest.raises(RuntimeError, match="spade_blocks has no gradient"):
        ops.spade_blocks(*inputs)


def test_hopper_kernel_says_what_it_refuses() -> None:
    refuses = ops.registry()["spade_blocks"].backends["cuda"].refuses

    def reason(case: Case, dtype: torch.dtype = torch.float16) -> str:
        tensors = [value for value in case.inputs(dtype) if isinstance(value, Tensor)]
        return str(refuses(tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)))

    assert reason(Case((1, 2, 2, 32), 64, 2)) == "None"
    assert "got torch.float16, 48, 64" in reason(Case((1, 2, 2, 48), 64, 2))
    assert "got torch.float16, 32, 96" in reason(Case((1, 2, 2, 32), 96, 2))
    assert "made for float16" in reason(Case((1, 2, 2, 32), 64, 2), torch.float32)


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(NAMES, Case((1, 4, 6, 5), 3, 2).inputs(), strict=True)), **changed}


PLANES = torch.zeros(1, 5, 4, 6).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=1), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(1, 4, 6, 5, 1)), ValueError, "x must have shape .*got 5 dimensions"),
        (bad(x=torch.zeros(1, 4, 6, 5).double()), TypeError, "x must have dtype"),
        (bad(dx=torch.zeros(1, 4, 6, 8)), ValueError, r"dx must have shape \(1, 4, 6, 5\)"),
        (bad(dx=PLANES), ValueError, "dx must be channels-last"),
        (bad(dx=torch.zeros(1, 4, 6, 5).half()), TypeError, "dx must have the dtype of x"),
        (bad(dx=torch.zeros(1, 4, 6, 5, device="meta")), ValueError, "dx must be on the device of x"),
        (bad(weight=torch.zeros(5, 3, 3, 5)), ValueError, r"weight must have shape \(S, 5, 3, 3, 5\)"),
        (bad(weight=torch.zeros(2, 5, 3, 3, 8)), ValueError, r"weight must have shape \(S, 5, 3, 3, 5\)"),
        (bad(weight=torch.zeros(1, 5, 3, 3, 5)), ValueError, "weight must hold 2 steps or more, got 1"),
        (bad(weight=torch.zeros(2, 5, 5, 3, 3).permute(0, 1, 3, 4, 2)), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(3, 5)), ValueError, r"bias must have shape \(2, 5\)"),
        (bad(bias=torch.zeros(2, 5).half()), TypeError, "bias must have dtype float32"),
        (bad(spade_weight=torch.zeros(2, 5, 3, 3, 3)), ValueError, r"spade_weight must have shape \(2, 10, 3, 3, 3\)"),
        (bad(spade_weight=torch.zeros(3, 10, 3, 3, 3)), ValueError, r"spade_weight must have shape \(2, 10, 3, 3, 3\)"),
        (bad(actv=torch.zeros(1, 4, 6, 3)), ValueError, r"actv must have channels for each of 2 steps, got .*6, 3\)"),
        (bad(actv=torch.zeros(1, 4, 5, 6)), ValueError, r"actv must have shape \(1, 4, 6, S K\)"),
        (bad(actv=torch.zeros(1, 4, 6, 6).half()), TypeError, "actv must have the dtype of x"),
        (bad(spade_bias=torch.zeros(2, 5)), ValueError, r"spade_bias must have shape \(2, 10\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.spade_blocks(**arguments)
