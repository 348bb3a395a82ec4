"""flow_warp: every backend against the float64 reference, and the reference against the original's own arithmetic."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from lpkernels import ops, ref
from tests.ops import contract

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [  # batch, keypoints, channels, depth, height, width
    (1, 21, 32, 4, 16, 16),
    (2, 21, 8, 3, 7, 13),
    (3, 1, 1, 2, 2, 2),
    (1, 5, 3, 2, 9, 65),
]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Mask logits, kp_source, kp_driving, volume: random, keypoints reaching beyond the picture."""
    batch, keypoints, channels, *spatial = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    tensors = [
        (3 * normal(batch, keypoints + 1, *spatial)).to(dtype),
        0.7 * normal(batch, keypoints, 3),
        0.7 * normal(batch, keypoints, 3),
        normal(batch, channels, *spatial).to(dtype),
    ]
    return [tensor.to(device) for tensor in tensors]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    inputs = make_inputs(shape, dtype, device)
    warped, deformation = ops.flow_warp(*inputs)
    assert warped.dtype == dtype
    assert deformation.dtype == torch.float32
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, inputs, exact(inputs))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_float32_logits_with_a_half_volume(dtype: torch.dtype, device: str) -> None:
    logits, kp_source, kp_driving, volume = make_inputs((2, 5, 3, 3, 5, 7), torch.float32, device)
    inputs = [logits, kp_source, kp_driving, volume.to(dtype)]
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, inputs, exact(inputs))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_reference_at_full_size(dtype: torch.dtype) -> None:
    inputs = make_inputs((2, 21, 32, 16, 64, 64), dtype, "cuda")
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, inputs, exact(inputs))


@pytest.mark.usefixtures("poisoned")
@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), *[st.integers(2, 9)] * 3), st.integers(0, 2**16)
)
def test_any_shape(shape: tuple[int, ...], seed: int) -> None:
    inputs = make_inputs(shape, torch.float32, "cpu", seed)
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, inputs, exact(inputs))


@pytest.mark.usefixtures("poisoned")
def test_strided_inputs(device: str) -> None:
    inputs = make_inputs((2, 5, 3, 3, 4, 6), torch.float32, device)
    expected = ops.flow_warp(*inputs)
    contract.assert_same(ops.flow_warp(*[contract.strided(tensor) for tensor in inputs]), expected)
    logits, kp_source, kp_driving, volume = inputs
    last = (
        logits.contiguous(memory_format=torch.channels_last_3d),
        volume.contiguous(memory_format=torch.channels_last_3d),
    )
    contract.assert_same(ops.flow_warp(last[0], kp_source, kp_driving, last[1]), expected)


def test_expanded_volume_is_broadcast(device: str) -> None:
    logits, kp_source, kp_driving, volume = make_inputs((3, 5, 4, 2, 5, 6), torch.float32, device)
    one = volume[:1].expand(3, -1, -1, -1, -1)
    contract.assert_same(
        ops.flow_warp(logits, kp_source, kp_driving, one),
        ops.flow_warp(logits, kp_source, kp_driving, one.contiguous()),
    )


def original_arithmetic(logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor) -> tuple[Tensor, Tensor]:
    """Grid minus driving plus source, voxel by voxel; written apart from the reference."""
    batch, _, depth, height, width = logits.shape
    masks_of = torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)
    deformation = torch.zeros(batch, depth, height, width, 3, dtype=logits.dtype)
    for d in range(depth):
        for h in range(height):
            for w in range(width):
                grid = torch.tensor([w / (width - 1), h / (height - 1), d / (depth - 1)], dtype=logits.dtype) * 2 - 1
                points = torch.cat([grid.expand(batch, 1, 3), grid - kp_driving + kp_source], dim=1)
                deformation[:, d, h, w] = (masks_of[:, :, d, h, w, None] * points).sum(1)
    return F.grid_sample(volume, deformation, align_corners=False), deformation


def test_reference_is_the_original_arithmetic() -> None:
    inputs = exact(make_inputs((2, 3, 2, 3, 4, 5), torch.float32, "cpu"))
    for actual, truth in zip(ref.flow_warp(*inputs), original_arithmetic(*inputs), strict=True):
        assert contract.relative_error(actual, truth) < 1e-12


def test_reference_is_differentiable() -> None:
    inputs = [tensor.requires_grad_() for tensor in exact(make_inputs((1, 2, 1, 2, 3, 3), torch.float32, "cpu"))]
    assert torch.autograd.gradcheck(lambda *args: ref.flow_warp(*args)[1], inputs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38])
def test_wild_keypoints_give_zero_not_a_crash(value: float, device: str) -> None:
    logits, kp_source, kp_driving, volume = make_inputs((1, 2, 3, 2, 4, 4), torch.float32, device)
    kp_source[0, 1, 0] = value
    warped, deformation = ops.flow_warp(logits, kp_source, kp_driving, volume)
    assert torch.equal(warped, torch.zeros_like(warped))
    assert torch.isfinite(deformation[..., 1:]).all()


def test_minus_infinite_logits_switch_a_motion_off(device: str) -> None:
    logits, kp_source, kp_driving, volume = make_inputs((1, 3, 2, 2, 4, 4), torch.float32, device)
    logits[:, :2] = -math.inf
    contract.assert_close_to_reference(
        ops.flow_warp, ref.flow_warp, inputs := [logits, kp_source, kp_driving, volume], exact(inputs)
    )


def test_equal_keypoints_give_the_identity(device: str) -> None:
    logits, kp_source, _, volume = make_inputs((1, 4, 2, 3, 5, 4), torch.float32, device)
    _, deformation = ops.flow_warp(logits, kp_source, kp_source.clone(), volume)
    corner = deformation[0, -1, -1, -1].cpu()
    torch.testing.assert_close(corner, torch.ones(3))
    torch.testing.assert_close(deformation[0, 0, 0, 0].cpu(), -torch.ones(3))


def test_opcheck(device: str) -> None:
    choice = ops.registry()["flow_warp"].choose(device)
    if choice.backend == "ref":
        pytest.skip(f"the op library has no kernel here: {choice.passed}")
    contract.check_opcheck(torch.ops.lpkernels.flow_warp, make_inputs((2, 3, 2, 2, 3, 4), torch.float32, device))


def test_compile(device: str) -> None:
    contract.check_compile(ops.flow_warp, make_inputs((1, 3, 2, 2, 3, 4), torch.float32, device))


def test_export(device: str) -> None:
    backend = ops.registry()["flow_warp"].choose(device).backend
    node = "grid_sampler" if backend == "ref" else "lpkernels.flow_warp"
    contract.check_export(ops.flow_warp, make_inputs((1, 3, 2, 2, 3, 4), torch.float32, device), node)


def test_repeatable(device: str) -> None:
    contract.check_repeatable(ops.flow_warp, make_inputs((2, 5, 4, 3, 8, 9), torch.float32, device))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(ops.flow_warp, make_inputs((2, 21, 32, 16, 64, 64), torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[1].mul_(-0.5)
        inputs[3].add_(1)

    contract.check_graph_capture(ops.flow_warp, make_inputs((1, 21, 32, 16, 64, 64), torch.float16, "cuda"), change)


@pytest.mark.gpu
def test_second_device() -> None:
    contract.check_second_device(ops.flow_warp, make_inputs((1, 3, 2, 2, 3, 4), torch.float32, "cpu"))


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs((1, 2, 2, 2, 3, 3), torch.float32, device)
    inputs[3].requires_grad_()
    with pytest.raises(RuntimeError, match=r"flow_warp has no gradient.*lpkernels\.ref\.flow_warp"):
        ops.flow_warp(*inputs)
    with torch.no_grad():
        ops.flow_warp(*inputs)


def test_the_bare_op_refuses_gradients_too() -> None:
    if ops.registry()["flow_warp"].choose("cpu").backend != "cpu":
        pytest.skip("the op library is not built")
    inputs = make_inputs((1, 2, 2, 2, 3, 3), torch.float32, "cpu")
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="flow_warp has no gradient"):
        torch.ops.lpkernels.flow_warp(*inputs)


def bad(**changed: object) -> dict[str, object]:
    names = ("mask_logits", "kp_source", "kp_driving", "volume")
    inputs = make_inputs((2, 3, 2, 2, 3, 4), torch.float32, "cpu")
    return {**dict(zip(names, inputs, strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(mask_logits=[1.0]), TypeError, "mask_logits must be a torch.Tensor, got list"),
        (bad(mask_logits=torch.zeros(2, 4, 2, 3)), ValueError, r"mask_logits must have shape .*got 4 dimensions"),
        (bad(mask_logits=torch.zeros(0, 4, 2, 3, 4)), ValueError, "no empty dimension"),
        (bad(mask_logits=torch.zeros(2, 1, 2, 3, 4)), ValueError, "at least 2 masks"),
        (bad(mask_logits=torch.zeros(2, 4, 1, 3, 4)), ValueError, "D, H, W of at least 2"),
        (bad(mask_logits=torch.zeros(2, 4, 2, 3, 4).double()), TypeError, "mask_logits must have dtype .*got float64"),
        (
            bad(mask_logits=torch.zeros(2, 4, 2, 3, 4).half()),
            TypeError,
            "mask_logits must have dtype float32, got float16",
        ),
        (bad(kp_source=torch.zeros(2, 4, 3)), ValueError, r"kp_source must have shape \(2, 3, 3\), got \(2, 4, 3\)"),
        (bad(kp_driving=torch.zeros(1, 3, 3)), ValueError, r"kp_driving must have shape \(2, 3, 3\)"),
        (bad(kp_source=torch.zeros(2, 3, 3).half()), TypeError, "kp_source must have dtype float32, got float16"),
        (bad(kp_driving=torch.zeros(2, 3, 3).half()), TypeError, "kp_driving must have the dtype of kp_source"),
        (bad(volume=torch.zeros(2, 2, 2, 3, 5)), ValueError, "volume must have shape"),
        (bad(volume=torch.zeros(2, 0, 2, 3, 4)), ValueError, "no empty dimension"),
        (bad(volume=torch.zeros(2, 2, 2, 3, 4).double()), TypeError, "volume must have dtype .*got float64"),
        (bad(kp_source=torch.zeros(2, 3, 3, device="meta")), ValueError, "kp_source must be on the device of volume"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.flow_warp(**arguments)


@pytest.mark.parametrize(
    "changed",
    [
        {"mask_logits": torch.zeros(2, 4, 2, 3)},
        {"mask_logits": torch.zeros(2, 4, 2, 2, 4)},
        {"kp_source": torch.zeros(2, 2, 3)},
        {"kp_driving": torch.zeros(2, 3, 3).double()},
        {"kp_driving": torch.zeros(3, 2, 3).transpose(0, 1)},
        {"volume": torch.zeros(1, 2, 2, 3, 4)},
        {"mask_logits": torch.zeros(2, 4, 2, 3, 4).half()},
        {"volume": torch.zeros(2, 0, 2, 3, 4)},
        {"mask_logits": torch.zeros(2, 4, 2, 3, 4).double(), "volume": torch.zeros(2, 2, 2, 3, 4).double()},
    ],
)
def test_the_bare_op_checks_too(changed: dict[str, Tensor]) -> None:
    if ops.registry()["flow_warp"].choose("cpu").backend != "cpu":
        pytest.skip("the op library is not built")
    with pytest.raises(RuntimeError, match="flow_warp: "):
        torch.ops.lpkernels.flow_warp(*bad(**changed).values())
