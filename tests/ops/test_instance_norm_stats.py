"""instance_norm_stats: every backend against InstanceNorm in float64, large means, slices, fixed order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lpkernels import errors, ops, ref
from tests.ops import contract

SMALL = [(1, 3, 5, 7), (2, 9, 17, 33), (3, 1, 1, 4), (1, 40, 20, 70)]
PUBLISHED = [(1, 64, 64, 512), (1, 128, 128, 256), (1, 256, 256, 64), (1, 256, 256, 512), (3, 65, 63, 72)]


def make_input(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0, mean: float = 3.0) -> Tensor:
    """Channels of different deviations around means of ``mean``'s size."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[-1]
    x = torch.randn(*shape, generator=generator) * torch.rand(channels, generator=generator).add(0.5)
    return (x + mean * torch.randn(channels, generator=generator)).to(device, dtype)


def stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and rstd apart, for each is held to its own error."""
    return ops.instance_norm_stats(x).unbind(-1)


def stats_ref(x: Tensor) -> tuple[Tensor, Tensor]:
    return ref.instance_norm_stats(x).unbind(-1)


@settings(max_examples=20, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(2, 9), st.integers(1, 9)))
def test_reference_is_instance_norm(shape: tuple[int, ...]) -> None:
    x = make_input(shape, torch.float64, "cpu")
    expected = F.instance_norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    mean, rstd = ref.instance_norm_stats(x)[:, None, None].unbind(-1)
    assert contract.relative_error((x - mean) * rstd, expected) < 1e-10


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = make_input(shape, dtype, device)
    contract.assert_close_to_reference(stats, stats_ref, [x], [x.double().cpu()])


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = make_input(shape, dtype, "cpu")
    with ops.use_backend("triton"):
        contract.assert_close_to_reference(stats, stats_ref, [x], [x.double()])


@pytest.mark.usefixtures("interpreted")
def test_triton_is_stable_where_the_mean_is_large() -> None:
    x = make_input((1, 33, 40, 20), torch.float32, "cpu", mean=300.0)
    with ops.use_backend("triton"):
        actual = stats(x)
    for got, truth in zip(actual, stats_ref(x.double()), strict=True):
        assert contract.relative_error(got, truth) < 3e-6
    squares = x.square().mean((1, 2)) - x.mean((1, 2)).square()  # what a plain sum of squares would give
    assert contract.relative_error((squares + 1e-5).rsqrt(), stats_ref(x.double())[1]) > 1e-4


def check_slice(dtype: torch.dtype, device: str) -> None:
    x = make_input((2, 5, 9, 11), dtype, device)
    buffer = x.new_full((2, 5, 9, 24), float("nan"))
    buffer[..., 8:19] = x
    contract.assert_same(stats(buffer[..., 8:19]), stats(x))


def test_slice(device: str) -> None:
    check_slice(torch.float32, device)


@pytest.mark.usefixtures("interpreted")
def test_triton_slice() -> None:
    with ops.use_backend("triton"):
        check_slice(torch.float16, "cpu")


def test_torch_matches_reference() -> None:
    x = make_input(SMALL[1], torch.float16, "cpu")
    run = ops.registry()["instance_norm_stats"].backends["torch"].run
    contract.assert_same([run(x)], [ref.instance_norm_stats(x)])


def test_constant_channel_is_finite(device: str) -> None:
    mean, rstd = stats(torch.full((1, 4, 4, 8), 7.0, device=device))
    torch.testing.assert_close(mean, torch.full_like(mean, 7.0))
    torch.testing.assert_close(rstd, torch.full_like(rstd, 1e-5**-0.5))


def test_compile(device: str) -> None:
    contract.check_compile(stats, [make_input(SMALL[0], torch.float32, device)])


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    x = make_input(SMALL[0], torch.float32, "cpu")
    contract.check_opcheck(torch.ops.lpkernels.instance_norm_stats_triton, [x])
    with ops.use_backend("triton"):
        contract.check_compile(stats, [x])
        contract.check_export(stats, [x], "lpkernels.instance_norm_stats_triton")


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_published_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = make_input(shape, dtype, "cuda")
    assert ops.registry()["instance_norm_stats"].choose("cuda").backend == "triton"
    contract.assert_close_to_reference(stats, stats_ref, [x], [x.double().cpu()])


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(stats, [make_input(PUBLISHED[2], torch.float16, "cuda")])


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(stats, [make_input(PUBLISHED[0], torch.float16, "cuda")])


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5).add_(1)

    contract.check_graph_capture(stats, [make_input(PUBLISHED[1], torch.float16, "cuda")], change)


def test_gradients_are_refused(device: str) -> None:
    with pytest.raises(RuntimeError, match="instance_norm_stats has no gradient"):
        ops.instance_norm_stats(make_input(SMALL[0], torch.float32, device).requires_grad_())


def test_torch_backend_says_why_not() -> None:
    with ops.use_backend("torch"), pytest.raises(errors.BackendError, match="needs cuda tensors"):
        ops.instance_norm_stats(torch.zeros(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x must be a torch.Tensor, got NoneType"),
        (torch.zeros(2, 3, 4), ValueError, r"x must have shape \(B, H, W, C\)"),
        (torch.zeros(1, 0, 3, 4), ValueError, "no empty dimension"),
        (torch.zeros(1, 4, 2, 3).permute(0, 2, 3, 1), ValueError, "x must be channels-last"),
        (torch.zeros(1, 2, 3, 4).double(), TypeError, "x must have dtype"),
    ],
)
def test_bad_arguments_are_named(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.instance_norm_stats(x)
