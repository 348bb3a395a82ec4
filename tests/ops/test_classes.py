"""Grids of classes: upsample_conv writes them, conv_act and spade_conv read them as the image they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lpkernels import errors, ops, ref, rewrites
from lpkernels._channels_last import pixels, planes
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

SIZES = [(1, 1, 1, 8, 32), (2, 3, 2, 16, 8)]  # batch, small height and width, channels, outputs
REAL = (1, 64, 64, 128, 256)
Size = tuple[int, int, int, int, int]


def expanded(classes: Tensor) -> Tensor:
    return pixels(rewrites.expand_classes(planes(classes)))


def conv_inputs(size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
    """conv_act's arguments up to the residual: classes, weight of 16 phases, bias, slope, residual."""
    batch, height, width, channels, outputs = size
    packed = ops.pack_class_weight(ops.pack_conv_weight(conv_weight(outputs, channels, 3, 3), multiple=1))
    residual = normal(batch, 4 * height, 4 * width, outputs, seed=3).to(device, dtype)
    x = normal(batch, 3 * height, 3 * width, channels, seed=0).to(device, dtype)
    return [x, packed.to(device, dtype), normal(outputs, seed=2).to(device), 0.2, residual]


def spade_inputs(size: Size, beta: bool, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
    """spade_conv's arguments; x has half the size of the answer."""
    batch, height, width, hidden, channels = size
    weights = [conv_weight(channels, hidden, 3, 3, seed=seed) for seed in (1, 4)]
    biases = [normal(channels, seed=seed) for seed in (2, 5)]
    if beta:
        weight, bias = ops.pack_spade_weight(weights[0], biases[0], weights[1], biases[1])
    else:
        weight, bias = ops.pack_gamma_weight(weights[0], biases[0])
    x = (2 + 3 * normal(batch, 2 * height, 2 * width, channels, seed=6)).to(dtype)
    actv = normal(batch, 3 * height, 3 * width, hidden, seed=0).relu()
    tensors = actv.to(dtype), ops.pack_class_weight(weight).to(dtype), bias, x, ref.instance_norm_stats(x)
    return [tensor.to(device) for tensor in tensors]


def conv_op(*inputs: Any) -> tuple[Tensor]:
    return (ops.conv_act(*inputs),)


def conv_ref(*inputs: Any) -> tuple[Tensor]:
    return (ref.conv_act(*inputs),)


def spade_op(*inputs: Any) -> tuple[Tensor]:
    return (ops.spade_conv(*inputs),)


def spade_ref(*inputs: Any) -> tuple[Tensor]:
    return (ref.spade_conv(*inputs),)


def upsample_op(*inputs: Any) -> tuple[Tensor]:
    return (ops.upsample_conv(*inputs, classes=True),)


def upsample_ref(*inputs: Any) -> tuple[Tensor]:
    return (ref.upsample_conv(*inputs, classes=True),)


def upsample_inputs(size: Size, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Any]:
    batch, height, width, channels, outputs = size
    packed = ops.pack_upsample_weight(conv_weight(outputs, channels, 3, 3), 4, multiple=1)
    x = normal(batch, height, width, channels, seed=0).to(device, dtype)
    return [x, packed.to(device, dtype), normal(outputs, seed=2).to(device), 0.0]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", SIZES)
def test_upsample_conv_stores_each_value_once(size: Size) -> None:
    inputs = upsample_inputs(size)
    classes = ops.upsample_conv(*inputs, classes=True)
    assert classes.shape == (size[0], 3 * size[1], 3 * size[2], size[4])
    torch.testing.assert_close(expanded(classes), ops.upsample_conv(*inputs), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("size", SIZES)
def test_conv_act_reads_classes_as_the_image(size: Size) -> None:
    x, _, bias, slope, residual = conv_inputs(size)
    plain = ops.pack_conv_weight(conv_weight(size[4], size[3], 3, 3), multiple=1)
    expected = ref.conv_act(expanded(x).double(), plain.double(), bias.double(), slope, residual.double())
    (actual,) = conv_op(*conv_inputs(size))
    assert contract.relative_error(actual, expected) < 3e-6


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_spade_conv_reads_classes_as_the_image(size: Size, beta: bool) -> None:
    actv, weight, bias, x, stats = spade_inputs(size, beta)
    rows = bias.shape[0]
    corner = weight.unflatten(0, (16, rows))[0]  # phase (0, 0) sums nothing: it is the original kernel
    expected = ref.spade_conv(*exact([expanded(actv), corner, bias, x, stats]))
    assert contract.relative_error(spade_op(actv, weight, bias, x, stats)[0], expected) < 3e-6


@pytest.mark.usefixtures("poisoned")
def test_slices_of_wider_buffers() -> None:
    inputs = conv_inputs(SIZES[1])
    expected = ops.conv_act(*inputs)
    out, buffer = sliced(torch.zeros_like(expected))
    out.fill_(float("nan"))
    ops.conv_act(sliced(inputs[0])[0], *inputs[1:], out=out)
    assert_untouched(buffer, out)
    contract.assert_same([out], [expected])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w, b: ops.conv_act(x[:, :2].contiguous(), w, b), r"x must be a grid of classes \(B, 3h, 3w, C\)"),
        (
            lambda x, w, b: ops.conv_act(x, w, b, stats=torch.zeros(2, 8, 2)),
            "stats are not made from a grid of classes",
        ),
        (lambda x, w, b: ops.conv_act(x, w, b, out=torch.zeros(2, 9, 6, 8)), r"out must have shape \(2, 12, 8, 8\)"),
        (lambda x, w, b: ops.pack_class_weight(w[:, :2]), r"weight must have shape \(O, 3, 3, C\)"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*conv_inputs(SIZES[1])[:3])


def test_only_pictures_enlarged_four_times_have_classes() -> None:
    weight = ops.pack_upsample_weight(conv_weight(4, 8, 3, 3), 2)
    with pytest.raises(ValueError, match="classes needs pictures and scale 4"):
        ops.upsample_conv(torch.zeros(1, 2, 2, 8), weight, torch.zeros(4), classes=True)


def test_triton_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for call in (lambda: conv_op(*conv_inputs(SIZES[1])), lambda: upsample_op(*upsample_inputs(SIZES[1]))):
        with ops.use_backend("triton"), pytest.raises(errors.BackendError, match="grids of classes are for the Hopper"):
            call()


GPU_CASES = [
    ("conv_act", conv_op, conv_ref, lambda: conv_inputs((*REAL[:4], 64), torch.float16, "cuda")),
    ("conv_act", conv_op, conv_ref, lambda: conv_inputs((2, 5, 7, 128, 96), torch.float16, "cuda")),
    ("spade_conv", spade_op, spade_ref, lambda: spade_inputs(REAL, True, torch.float16, "cuda")),
    ("spade_conv", spade_op, spade_ref, lambda: spade_inputs(REAL, False, torch.float16, "cuda")),
    ("spade_conv", spade_op, spade_ref, lambda: spade_inputs((2, 9, 11, 128, 64), True, torch.float16, "cuda")),
]


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("name", "op", "reference", "make"), GPU_CASES)
def test_hopper_within_pytorchs_own_error(name: str, op: Any, reference: Any, make: Any) -> None:
    inputs = make()
    if reason := skip_reason(name, "cuda", inputs):
        pytest.skip(reason)
    assert_within_pytorchs_own_error(op, reference, inputs, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "op", "reference", "make"), GPU_CASES)
def test_hopper_repeats_and_is_captured(name: str, op: Any, reference: Any, make: Any) -> None:
    inputs = make()
    if reason := skip_reason(name, "cuda", inputs):
        pytest.skip(reason)
    contract.check_repeatable(op, inputs, times=20)

    def change(values: contract.Inputs) -> None:
        values[0].mul_(-0.5)

    contract.check_graph_capture(op, inputs, change)
