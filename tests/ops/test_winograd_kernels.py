"""The Hopper kernels of weights whose products neighbouring rows share, each against the op in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lpkernels import ops, ref
from tests.ops import contract
from tests.ops.conv_inputs import assert_untouched, exact, normal, sliced
from tests.ops.test_conv_act import Case as Conv
from tests.ops.test_conv_act import in_parts, with_stats_ref
from tests.ops.test_conv_pool import make_inputs as pool_inputs
from tests.ops.test_conv_pool import pool_ref
from tests.ops.test_spade_conv import PUBLISHED, modulated_ref
from tests.ops.test_spade_conv import Case as Norm
from tests.ops.test_spade_conv import make_inputs as spade_inputs
from tests.ops.winograd_inputs import WEIGHTS
from tests.ops.winograd_inputs import packed as packed_exactly

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

Run = Callable[..., tuple[Tensor, ...]]


def rounded(inputs: list[Any], keep: tuple[int, ...], heavy: bool = False) -> list[Any]:
    """A call made in float32 with its activations in float16, all on the GPU; what ``keep`` indexes stays as it is.

    ``heavy``: what is convolved has a long tail, as real activations do.
    """
    first, *others = inputs
    inputs = [normal(*first.shape, seed=9).mul(1.5).exp() if heavy else first, *others]
    cuda = [value.cuda() if isinstance(value, Tensor) else value for value in inputs]
    return [v.half() if isinstance(v, Tensor) and i not in keep else v for i, v in enumerate(cuda)]


def lowered(name: str, inputs: list[Any]) -> list[Any]:
    """The same call with its weights in float16."""
    return [value.half() if i in WEIGHTS[name] else value for i, value in enumerate(inputs)]


def packed(name: str, inputs: list[Any], together: bool = False) -> list[Any]:
    """The same call with its weights as the kernel takes them, rounded once; ``together``: of conv_act, which both."""
    wide = [value.double() if i in WEIGHTS[name] else value for i, value in enumerate(inputs)]
    return lowered(name, packed_exactly(name, wide, int(together)))


def assert_within_pytorchs_own_error(
    name: str, run: Run, reference: Run, inputs: list[Any], together: bool = False
) -> None:
    """The kernel errs at most 1.5 times as much as PyTorch does with taps, plus a few ulp."""
    if reason := ops.registry()[name].backends["cuda"].why_not("cuda"):
        pytest.skip(reason)
    truths = reference(*exact(inputs))
    with ops.use_backend("torch"):
        owns = run(*lowered(name, inputs))
    with ops.use_backend("cuda"):
        actuals = run(*packed(name, inputs, together))
    for actual, own, truth in zip(actuals, owns, truths, strict=True):
        assert actual.shape == truth.shape
        bound = 1.5 * contract.relative_error(own, truth) + contract.ULPS[actual.dtype]
        assert contract.relative_error(actual, truth) <= bound


def empty_slice(like: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Where an answer goes: channels of a wider buffer of NaN; and that buffer."""
    return sliced(like.new_full(shape, float("nan")))


def convolved(*inputs: Any) -> tuple[Tensor, Tensor]:
    """conv_act of slices into a slice, and its statistics."""
    x, weight, bias, slope, residual, gain = inputs
    out, buffer = empty_slice(x, *x.shape[:-1], bias.shape[0])
    stats = torch.empty(x.shape[0], bias.shape[0], 2, device=x.device)
    skip = None if residual is None else sliced(residual)[0]
    ops.conv_act(sliced(x)[0], weight, bias, slope, skip, gain, out=out, stats=stats)
    assert_untouched(buffer, out)
    return out, stats


KIND_BY_KIND = [
    Conv((1, 64, 64, 256), 1536, (3, 3), slope=0.0),
    Conv((1, 128, 128, 512), 256, (3, 3)),
    Conv((2, 128, 128, 384), 256, (3, 3), residual="full"),
    Conv((1, 16, 64, 64, 144), 144, (3, 3, 3), slope=0.0),
    Conv((2, 5, 33, 64), 128, (3, 3), slope=0.2, residual="full", gain=True),
    Conv((3, 66, 70, 128), 128, (3, 3), slope=0.01, residual="half"),
    Conv((2, 7, 130, 192), 384, (3, 3), gain=True),
    Conv((1, 1, 3, 64), 128, (3, 3)),
    Conv((2, 3, 5, 33, 144), 144, (3, 3, 3), slope=0.0),
    Conv((1, 1, 9, 64, 144), 144, (3, 3, 3), slope=0.2),
    Conv((2, 2, 6, 70, 64), 128, (3, 3, 3), residual="full"),
]
TOGETHER = [
    Conv((1, 256, 256, 256), 64, (3, 3)),
    Conv((1, 256, 256, 64), 64, (3, 3), slope=0.2, residual="full"),
    Conv((1, 64, 64, 512), 512, (3, 3), residual="full"),
    Conv((2, 5, 33, 64), 64, (3, 3), slope=0.2, residual="full", gain=True),
    Conv((3, 66, 70, 128), 128, (3, 3), slope=0.01, residual="half"),
    Conv((2, 7, 130, 192), 192, (3, 3), gain=True),
    Conv((1, 1, 3, 64), 64, (3, 3)),
    Conv((2, 2, 6, 70, 64), 64, (3, 3, 3), residual="full"),
    Conv((1, 3, 5, 33, 128), 192, (3, 3, 3), slope=0.0),
]
CONVS = [*((case, False) for case in KIND_BY_KIND), *((case, True) for case in TOGETHER)]


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("case", "together"), CONVS)
def test_conv_act(case: Conv, together: bool, heavy: bool) -> None:
    inputs = rounded(case.inputs(), (1, 2, 5), heavy)
    assert_within_pytorchs_own_error("conv_act", convolved, with_stats_ref, inputs, together)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("shape", [(1, 64, 64, 512), (2, 16, 64, 64), (3, 4, 128, 128)])
@pytest.mark.parametrize("outputs", [128, 512])
def test_conv_act_leaves_statistics_in_parts(shape: tuple[int, ...], outputs: int, together: bool) -> None:
    inputs = rounded(Conv(shape, outputs, (3, 3), residual="full").inputs(), (1, 2, 5))
    inputs[2].add_(30)  # a mean far above the deviation
    parts = ops.stat_parts(inputs[0], outputs, winograd=True)
    if parts is None:
        pytest.skip("no Hopper kernels here")
    assert parts == shape[1] * shape[2] // 256
    y, actual = in_parts(*packed("conv_act", inputs, together), parts=parts)
    assert contract.relative_error(actual, ref.channel_stats(y.double())) < 1e-3
    run = lambda *args: in_parts(*args, parts=parts)  # noqa: E731 - the number of parts goes with the kernel
    assert_within_pytorchs_own_error("conv_act", run, with_stats_ref, inputs, together)


@pytest.mark.parametrize("together", [False, True])
def test_what_lies_beyond_a_pixels_taps_does_not_matter(together: bool) -> None:
    if not ops.takes_winograd("conv_act", "cuda", torch.float16, 64, 64, 1):
        pytest.skip("no Hopper kernels here")
    inputs = rounded(Conv((1, 16, 70, 64), 128, (3, 3)).inputs(), (1, 2))
    x, weight, bias, *_ = packed("conv_act", inputs, together)
    before = ops.conv_act(x, weight, bias)
    x[:, 4, 5] = float("inf")
    after = ops.conv_act(x, weight, bias)
    beyond = torch.ones(16, 70, dtype=torch.bool, device="cuda")
    beyond[2:6, 4:7] = False  # row 2 does not see it, but shares products with row 3
    assert torch.equal(after[:, beyond], before[:, beyond])
    assert not after[0, 4, 5].isfinite().any()


def pooled(*inputs: Tensor) -> tuple[Tensor]:
    """conv_pool of a slice into a slice."""
    x, weight, bias = inputs
    batch, depth, height, width, _ = x.shape
    out, buffer = empty_slice(x, batch, depth, height // 2, width // 2, bias.shape[0])
    ops.conv_pool(sliced(x)[0], weight, bias, out=out)
    assert_untouched(buffer, out)
    return (out,)


POOLS = [
    (1, 16, 64, 64, 112, 64),
    (3, 4, 64, 64, 112, 64),
    (2, 3, 6, 34, 112, 64),
    (1, 2, 66, 70, 112, 64),
    (2, 2, 10, 66, 64, 64),
    (1, 1, 2, 2, 128, 64),
]


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("shape", POOLS)
def test_conv_pool(shape: tuple[int, ...], heavy: bool) -> None:
    inputs = rounded(pool_inputs(shape), (1, 2), heavy)
    assert_within_pytorchs_own_error("conv_pool", pooled, pool_ref, inputs)


def modulated(*inputs: Tensor) -> tuple[Tensor]:
    """spade_conv of slices into a slice."""
    actv, weight, bias, x, stats = inputs
    out, buffer = empty_slice(x, *actv.shape[:3], x.shape[-1])
    ops.spade_conv(sliced(actv)[0], weight, bias, sliced(x)[0], stats, out=out)
    assert_untouched(buffer, out)
    return (out,)


NORMS = [
    *[case for case in PUBLISHED if case.beta],
    Norm(2, 6, 36, 64, 64, half=True),
    Norm(1, 5, 33, 192, 128),
    Norm(2, 66, 70, 128, 64, half=True),
    Norm(1, 3, 65, 64, 192),
    Norm(3, 1, 1, 64, 64),
]


def spade_call(case: Norm, heavy: bool = False) -> list[Any]:
    """A call of spade_conv with the statistics of x as it is once rounded."""
    actv, weight, bias, x, _ = rounded(spade_inputs(case, torch.float32, "cpu"), (1, 2, 4), heavy)
    return [actv, weight, bias, x, ref.instance_norm_stats(x)]


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("case", NORMS)
def test_spade_conv(case: Norm, heavy: bool) -> None:
    assert_within_pytorchs_own_error("spade_conv", modulated, modulated_ref, spade_call(case, heavy))


@pytest.mark.parametrize(("norm", "parts"), [(0, 32), (1, 16), (2, 4), (3, 2), (6, 2)])
def test_spade_conv_with_statistics_in_parts(norm: int, parts: int) -> None:
    inputs = spade_call(NORMS[norm])
    inputs[4] = ref.channel_parts(inputs[3].float(), parts)
    assert_within_pytorchs_own_error("spade_conv", modulated, modulated_ref, inputs)


CALLS: dict[str, tuple[Run, Callable[[], list[Any]]]] = {
    "conv_act": (convolved, lambda: packed("conv_act", rounded(KIND_BY_KIND[1].inputs(), (1, 2, 5)))),
    "conv_act together": (convolved, lambda: packed("conv_act", rounded(TOGETHER[1].inputs(), (1, 2, 5)), True)),
    "conv_act of a volume": (convolved, lambda: packed("conv_act", rounded(KIND_BY_KIND[3].inputs(), (1, 2, 5)))),
    "conv_pool": (pooled, lambda: packed("conv_pool", rounded(pool_inputs(POOLS[0]), (1, 2)))),
    "spade_conv": (modulated, lambda: packed("spade_conv", spade_call(PUBLISHED[1]))),
}


@pytest.mark.parametrize("name", CALLS)
def test_repeatable(name: str) -> None:
    run, inputs = CALLS[name]
    contract.check_repeatable(run, inputs())
