"""conv_act: every backend against the original's formula in float64, slices, statistics, and what is refused."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from lpkernels import errors, ops, ref
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
    """Sizes of x (B, [D,] H, W, C), outputs, taps, and what follows the convolution."""

    x: tuple[int, ...]
    outputs: int
    taps: tuple[int, ...]
    slope: float = 1.0
    residual: str = ""  # full, half
    gain: bool = False

    def inputs(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
        """x, weight, bias, negative_slope, residual, gain."""
        weight = ops.pack_conv_weight(conv_weight(self.outputs, self.x[-1], *self.taps), multiple=1)
        batch, *spatial, _ = self.x
        if self.residual == "half":
            spatial = [size // 2 for size in spatial]
        residual = normal(batch, *spatial, self.outputs, seed=3).to(device, dtype) if self.residual else None
        gain = normal(*self.x[:-1], seed=4).sigmoid().to(device) if self.gain else None
        x, bias = normal(*self.x, seed=0), normal(self.outputs, seed=2)
        return [x.to(device, dtype), weight.to(device, dtype), bias.to(device), self.slope, residual, gain]


SMALL = [
    Case((2, 5, 7, 8), 12, (3, 3), slope=0.2, residual="full", gain=True),
    Case((1, 24, 24, 3), 8, (3, 3), slope=0.01),  # several blocks of pixels
    Case((3, 1, 1, 16), 70, (1, 1), slope=0.0, residual="full"),
    Case((2, 6, 4, 8), 5, (3, 3), residual="half"),
    Case((1, 3, 5, 4, 8), 9, (3, 3, 3), slope=0.0),
    Case((2, 2, 3, 4, 8), 8, (1, 3, 3), residual="full"),
]
REAL = [
    Case((1, 64, 64, 512), 512, (3, 3), residual="full"),
    Case((1, 64, 64, 256), 1536, (3, 3), slope=0.0),
    Case((1, 128, 128, 512), 256, (1, 1), residual="half"),
    Case((1, 256, 256, 64), 64, (3, 3), slope=0.2),
    Case((2, 64, 64, 256), 256, (1, 1), gain=True),
    Case((1, 16, 64, 64, 144), 144, (3, 3, 3), slope=0.0),
]


def with_stats(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The op's answer and its statistics."""
    stats = torch.empty(inputs[0].shape[0], inputs[1].shape[0], 2, device=inputs[0].device)
    return ops.conv_act(*inputs, stats=stats), stats


def with_stats_ref(*inputs: Any) -> tuple[Tensor, Tensor]:
    y = ref.conv_act(*inputs)
    return y, ref.channel_stats(y)


def in_parts(*inputs: Any, parts: int = 2) -> tuple[Tensor, Tensor]:
    """The op's answer and its statistics, put together from parts."""
    stats = torch.empty(inputs[0].shape[0], parts, inputs[1].shape[0], 2, device=inputs[0].device)
    y = ops.conv_act(*inputs, stats=stats)
    assert not stats.isnan().any()
    return y, ref.whole_stats(stats)


def alone(*inputs: Any) -> tuple[Tensor]:
    return (ops.conv_act(*inputs),)


def assert_matches(case: Case, dtype: torch.dtype, device: str = "cpu", bound: float = 3.0) -> None:
    inputs = case.inputs(dtype, device)
    for actual, truth in zip(with_stats(*inputs), with_stats_ref(*exact(inputs)), strict=True):
        assert actual.shape == truth.shape
        assert contract.relative_error(actual, truth) < bound * contract.ULPS[dtype]


@pytest.mark.parametrize("case", SMALL)
def test_reference_is_the_originals_formula(case: Case) -> None:
    x, weight, bias, slope, residual, gain = exact(case.inputs())
    convolve = F.conv3d if x.dim() == 5 else F.conv2d
    planes, kernel = x.movedim(-1, 1).contiguous(), weight.movedim(-1, 1).contiguous()
    y = convolve(planes, kernel, bias, padding=tuple(taps // 2 for taps in case.taps))
    if residual is not None:
        skip = residual.movedim(-1, 1)
        y = y + (F.interpolate(skip, scale_factor=2) if case.residual == "half" else skip)
    y = F.leaky_relu(y, slope)
    if gain is not None:
        y = y * gain[:, None]
    actual, stats = with_stats_ref(x, weight, bias, slope, residual, gain)
    assert contract.relative_error(actual.movedim(-1, 1), y) < 1e-12
    if y[0, 0].numel() > 1:  # InstanceNorm refuses a single pixel
        mean, rstd = stats.unflatten(1, (-1, *[1] * len(case.taps))).unbind(-1)
        assert contract.relative_error((y - mean) * rstd, F.instance_norm(y)) < 1e-10


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", SMALL)
def test_matches_reference(case: Case, device: str) -> None:
    assert_matches(case, torch.float32, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", SMALL)
def test_statistics_in_parts(case: Case) -> None:
    inputs = case.inputs()
    pixels = inputs[0][0, ..., 0].numel()
    for parts in (1, pixels):
        for actual, truth in zip(in_parts(*inputs, parts=parts), with_stats_ref(*exact(inputs)), strict=True):
            assert contract.relative_error(actual, truth) < 3 * contract.ULPS[torch.float32]
    with pytest.raises(ValueError, match="parts of equal size"):
        in_parts(*inputs, parts=pixels + 1)


@pytest.mark.parametrize(("parts", "taken"), [(32, True), (16, False), (1, False), (None, True)])
def test_parts_that_the_hopper_kernel_takes(parts: int | None, taken: bool) -> None:
    x, y = ((1, 64, 64, 256), torch.float16), ((1, 64, 64, 512), torch.float16)
    stats = (1, 512, 2) if parts is None else (1, parts, 512, 2)
    signature = (x, ((512, 3, 3, 256), torch.float16), ((512,), torch.float32), y, (stats, torch.float32))
    reason = ops.registry()["conv_act"].backends["cuda"].refuses(signature)
    assert (reason is None) == taken
    assert taken or "here 32" in str(reason)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("case", SMALL)
def test_triton_statistics_in_parts(case: Case) -> None:
    inputs = case.inputs()
    with ops.use_backend("triton"):
        actual = in_parts(*inputs, parts=1)[1]
    assert contract.relative_error(actual, with_stats_ref(*exact(inputs))[1]) < 3 * contract.ULPS[torch.float32]


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [(1, 64, 64, 512), (2, 16, 32, 64), (3, 32, 8, 128)])
@pytest.mark.parametrize("outputs", [128, 512])
def test_hopper_statistics_in_parts(shape: tuple[int, ...], outputs: int) -> None:
    case = Case(shape, outputs, (3, 3), residual="full")
    inputs = case.inputs(torch.float16, "cuda")
    inputs[2].add_(30)  # a mean far above the deviation
    parts = ops.stat_parts(inputs[0], outputs)
    if parts is None:
        pytest.skip("no Hopper kernels here")
    assert parts == shape[1] * shape[2] // 128
    y, actual = in_parts(*inputs, parts=parts)
    assert contract.relative_error(actual, ref.channel_stats(y.double())) < 1e-3
    assert_within_pytorchs_own_error(lambda *args: in_parts(*args, parts=parts), with_stats_ref, inputs, "cuda")


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("case", SMALL)
def test_triton_matches_reference(case: Case) -> None:
    with ops.use_backend("triton"):
        assert_matches(case, torch.float32)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_in_half_precision(dtype: torch.dtype) -> None:
    with ops.use_backend("triton"):
        assert_matches(SMALL[0], dtype, bound=10)


@pytest.mark.usefixtures("interpreted")
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.sampled_from([1, 3]))
def test_triton_at_any_size(batch: int, height: int, width: int, outputs: int, taps: int) -> None:
    case = Case((batch, height, width, 4), outputs, (taps, 4 - taps), slope=0.2, residual="full")
    with ops.use_backend("triton"):
        assert_matches(case, torch.float32)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["triton", "ref"])
def test_statistics_survive_a_large_mean(backend: str) -> None:
    inputs = Case((1, 24, 24, 8), 8, (1, 1)).inputs()
    inputs[2] = inputs[2] + 1000
    with ops.use_backend(backend):
        _, stats = with_stats(*inputs)
    truth = with_stats_ref(*exact(inputs))[1]
    assert contract.relative_error(stats[..., 1], truth[..., 1]) < 1e-3


@pytest.mark.usefixtures("interpreted")
def test_triton_combines_many_blocks_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("lpkernels.triton.conv_act"), "CHUNK", 1)
    with ops.use_backend("triton"):
        assert_matches(SMALL[1], torch.float32)


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("backend", ["triton", "ref"])
@pytest.mark.parametrize("case", [SMALL[0], SMALL[3], SMALL[4]])
def test_slices_of_wider_buffers(case: Case, backend: str) -> None:
    inputs = case.inputs()
    with ops.use_backend(backend):
        expected = ops.conv_act(*inputs)
        narrow = [sliced(v)[0] if i in (0, 4) and v is not None else v for i, v in enumerate(inputs)]
        out, buffer = sliced(torch.full_like(expected, float("nan")), before=3)
        assert ops.conv_act(*narrow, out=out) is out
    assert_untouched(buffer, out)
    assert contract.relative_error(out, expected) < 1e-6


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", GPU_BACKENDS)
@pytest.mark.parametrize("case", [*SMALL, *REAL])
def test_half_within_pytorchs_own_error(case: Case, backend: str) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    if reason := skip_reason("conv_act", backend, inputs):
        pytest.skip(reason)
    assert_within_pytorchs_own_error(with_stats, with_stats_ref, inputs, backend)


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL)
def test_slices_on_the_gpu(case: Case) -> None:
    inputs = case.inputs(torch.float16, "cuda")
    expected = ops.conv_act(*inputs)
    narrow = [sliced(v)[0] if i in (0, 4) and v is not None else v for i, v in enumerate(inputs)]
    out, buffer = sliced(torch.full_like(expected, float("nan")))
    ops.conv_act(*narrow, out=out)
    assert_untouched(buffer, out)
    assert contract.relative_error(out, expected) < 1e-3


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", [SMALL[0], SMALL[1]])
def test_opcheck(case: Case) -> None:
    inputs = case.inputs()
    out, stats = with_stats(*inputs)
    contract.check_opcheck(torch.ops.lpkernels.conv_act_triton, [*inputs, out, None])
    contract.check_opcheck(torch.ops.lpkernels.conv_act_triton, [*inputs, out, stats])


def test_compile(device: str) -> None:
    contract.check_compile(with_stats, SMALL[0].inputs(device=device))


@pytest.mark.usefixtures("interpreted")
def test_compile_keeps_the_triton_op_whole() -> None:
    with ops.use_backend("triton"):
        contract.check_compile(with_stats, SMALL[3].inputs())


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(with_stats, REAL[0].inputs(torch.float16, "cuda"))


@pytest.mark.gpu
def test_second_stream() -> None:
    x, weight, bias, slope, residual, _ = REAL[0].inputs(torch.float16, "cuda")
    contract.check_second_stream(
        lambda x, weight, bias, residual: with_stats(x, weight, bias, slope, residual), [x, weight, bias, residual]
    )


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[2].add_(1)

    contract.check_graph_capture(with_stats, REAL[0].inputs(torch.float16, "cuda"), change)


@pytest.mark.parametrize("index", [0, 4])
def test_gradients_are_refused(index: int) -> None:
    inputs = SMALL[0].inputs()
    inputs[index].requires_grad_()
    with pytest.raises(RuntimeError, match="conv_act has no gradient"):
        ops.conv_act(*inputs)


def test_backends_say_what_they_refuse() -> None:
    op = ops.registry()["conv_act"]
    signature = (((1, 4, 4, 24), torch.float16), ((32, 3, 3, 24), torch.float16), ((32,), torch.float32))
    assert "multiples of 16" in str(op.backends["cuda"].refuses(signature))
    hourglass = (((1, 2, 4, 4, 144), torch.float16), ((144, 3, 3, 3, 144), torch.float16), ((144,), torch.float32))
    assert op.backends["cuda"].refuses(hourglass) is None
    with ops.use_backend("torch"), pytest.raises(errors.BackendError, match="on the CPU ref is the same convolution"):
        ops.conv_act(*SMALL[0].inputs())
