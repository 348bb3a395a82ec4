"""The Hopper kernel of a convolution and the SPADE behind it, with weights whose products neighbouring rows share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lpkernels import ops, ref
from tests.ops import contract
from tests.ops.conv_inputs import assert_untouched, sliced
from tests.ops.test_conv_spade import Case as Step
from tests.ops.test_conv_spade import with_y
from tests.ops.test_spade_blocks import Case as Blocks
from tests.ops.test_spade_blocks import of_conv_spade, slices
from tests.ops.test_winograd_kernels import (
    assert_within_pytorchs_own_error,
    empty_slice,
    packed,
    rounded,
)

pytestmark = pytest.mark.gpu

ONE_KERNEL = [  # on a GPU of 132 multiprocessors
    Step((1, 64, 64, 512), 128, 512, residual=True),
    Step((1, 64, 64, 256), 128, 512),  # fc
    Step((2, 64, 64, 64), 64, 256, residual=True),
    Step((3, 20, 64, 192), 192, 512),
    Step((1, 64, 128, 128), 128, 256, residual=True),
]
TWO_KERNELS = [
    Step((2, 64, 64, 512), 128, 512, residual=True),
    Step((1, 32, 64, 64), 64, 128),  # statistics in parts, too few blocks
    Step((3, 33, 47, 64), 128, 192, residual=True),
    Step((1, 128, 128, 64), 64, 512),
]
BLOCKS_AT_ONCE = [
    Blocks((1, 64, 64, 512), 128, 11),
    Blocks((2, 64, 64, 256), 64, 4),
    Blocks((3, 20, 64, 512), 192, 3),
    Blocks((1, 64, 128, 256), 128, 2),
]
STEP_BY_STEP = [
    Blocks((2, 64, 64, 512), 128, 4),  # each step in two kernels
    Blocks((1, 32, 64, 128), 64, 3),
    Blocks((3, 33, 47, 64), 64, 3),
]


def step_call(case: Step, heavy: bool = False) -> list[Any]:
    return rounded(case.inputs(), (1, 2, 4, 5), heavy)


def blocks_call(case: Blocks) -> list[Any]:
    return rounded(case.inputs(), (3, 4, 5, 6))


def skip_without_the_kernel() -> None:
    if reason := ops.registry()["conv_spade"].backends["cuda"].why_not("cuda"):
        pytest.skip(reason)


def kept(*inputs: Any) -> tuple[Tensor, Tensor]:
    """conv_spade of slices into a slice, with y in another."""
    x, weight, bias, actv, spade_weight, spade_bias, slope, residual = inputs
    out, buffer = empty_slice(x, *x.shape[:3], bias.shape[0])
    y, other = empty_slice(x, *x.shape[:3], bias.shape[0])
    skip = None if residual is None else sliced(residual)[0]
    first, second = (sliced(x)[0], weight, bias), (sliced(actv)[0], spade_weight, spade_bias)
    ops.conv_spade(*first, *second, slope, skip, y=y, out=out)
    assert_untouched(buffer, out)
    assert_untouched(other, y)
    return out, y


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("case", [*ONE_KERNEL, *TWO_KERNELS])
def test_conv_spade(case: Step, heavy: bool) -> None:
    assert_within_pytorchs_own_error("conv_spade", kept, ref.conv_spade, step_call(case, heavy))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", [*ONE_KERNEL, *TWO_KERNELS])
def test_the_answer_is_the_same_whether_y_is_kept_or_not(case: Step) -> None:
    skip_without_the_kernel()
    inputs = packed("conv_spade", step_call(case))
    contract.assert_same([ops.conv_spade(*inputs)], kept(*inputs)[:1])


@pytest.mark.parametrize("case", ONE_KERNEL)
def test_y_is_what_conv_act_gives(case: Step) -> None:
    skip_without_the_kernel()
    inputs = packed("conv_spade", step_call(case))
    x, weight, bias, *_, residual = inputs
    y = ops.conv_act(x, weight, bias, residual=residual)
    assert contract.relative_error(with_y(*inputs)[1], y) < contract.ULPS[torch.float16]


@pytest.mark.parametrize("case", ONE_KERNEL)
def test_statistics_are_those_of_each_image_and_channel(case: Step) -> None:
    """With images and channels far apart: a mean or a deviation from elsewhere would be seen."""
    inputs = step_call(case)
    inputs[0] *= (torch.arange(case.x[0], device="cuda").half() + 1)[:, None, None, None]
    inputs[2] += torch.arange(case.outputs, device="cuda") % 61
    assert_within_pytorchs_own_error("conv_spade", with_y, ref.conv_spade, inputs)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", [*BLOCKS_AT_ONCE, *STEP_BY_STEP])
def test_spade_blocks(case: Blocks) -> None:
    assert_within_pytorchs_own_error("spade_blocks", ops.spade_blocks, ref.spade_blocks, blocks_call(case))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", [*BLOCKS_AT_ONCE, *STEP_BY_STEP])
def test_spade_blocks_is_conv_spade_step_by_step(case: Blocks) -> None:
    skip_without_the_kernel()
    inputs = packed("spade_blocks", blocks_call(case))
    for activation in inputs[:3]:  # images and channels far apart
        activation *= (torch.arange(case.x[0], device="cuda").half() + 1)[:, None, None, None]
    inputs[4] += torch.arange(case.x[-1], device="cuda") % 61
    contract.assert_same(ops.spade_blocks(*slices(inputs)), of_conv_spade(*inputs))


def step_alone(case: Step) -> tuple[contract.Function, list[Tensor]]:
    """conv_spade as a function of activations and biases, and these."""
    x, weight, bias, actv, spade_weight, spade_bias, slope, residual = packed("conv_spade", step_call(case))

    def run(x: Tensor, actv: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return with_y(x, weight, bias, actv, spade_weight, spade_bias, slope, residual)

    return run, [x, actv, bias]


def blocks_alone(case: Blocks) -> tuple[contract.Function, list[Tensor]]:
    """The same of spade_blocks."""
    x, dx, actv, weight, bias, *others = packed("spade_blocks", blocks_call(case))

    def run(x: Tensor, actv: Tensor, bias: Tensor, dx: Tensor) -> tuple[Tensor, ...]:
        return ops.spade_blocks(x, dx, actv, weight, bias, *others)

    return run, [x, actv, bias, dx]


CALLS: dict[str, Callable[[], tuple[contract.Function, list[Tensor]]]] = {
    "conv_spade": lambda: step_alone(ONE_KERNEL[0]),
    "conv_spade, two images": lambda: step_alone(ONE_KERNEL[2]),
    "conv_spade in two kernels": lambda: step_alone(TWO_KERNELS[2]),
    "spade_blocks": lambda: blocks_alone(BLOCKS_AT_ONCE[0]),
    "spade_blocks, two images": lambda: blocks_alone(BLOCKS_AT_ONCE[1]),
    "spade_blocks step by step": lambda: blocks_alone(STEP_BY_STEP[2]),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> tuple[contract.Function, list[Tensor]]:
    """Each, of activations and biases."""
    skip_without_the_kernel()
    return CALLS[request.param]()


def test_repeatable(call: tuple[contract.Function, list[Tensor]]) -> None:
    contract.check_repeatable(*call)


def test_second_stream(call: tuple[contract.Function, list[Tensor]]) -> None:
    contract.check_second_stream(*call)


def test_graph_capture(call: tuple[contract.Function, list[Tensor]]) -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[1].mul_(0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(*call, change)


def test_compile(call: tuple[contract.Function, list[Tensor]]) -> None:
    contract.check_compile(*call)


def test_one_after_the_other_in_a_graph(call: tuple[contract.Function, list[Tensor]]) -> None:
    """Each kernel starts early and waits for all of its own blocks; the counter that they share has turned before."""
    run, inputs = call
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


def test_on_two_streams_at_once(call: tuple[contract.Function, list[Tensor]]) -> None:
    """Each wants the whole GPU: one waits for the other, and neither for ever."""
    run, inputs = call
    expected = run(*inputs)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    answers = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                answers.append(run(*inputs))
    torch.cuda.synchronize()
    for answer in answers:
        contract.assert_same(answer, expected)
