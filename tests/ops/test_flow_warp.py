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
LAST_SHAPES = [(1, 21, 32, 4, 8, 8), (2, 30, 8, 3, 5, 7), (3, 2, 5, 2, 3, 3)]  # whole vectors of 16 bytes, and not


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


def channels_last(volume: Tensor, wider: int = 0) -> Tensor:
    """The same volume as a permuted (B, D, H, W, C), or a slice of ``wider`` more channels of NaN around it."""
    last = F.pad(volume.permute(0, 2, 3, 4, 1), (wider // 2, wider - wider // 2), value=math.nan).contiguous()
    return last.permute(0, 4, 1, 2, 3).narrow(1, wider // 2, volume.shape[1])


def masks_last(logits: Tensor) -> Tensor:
    """Mask logits as ``mask_conv3d`` leaves them: a view of a contiguous (B, D, H, W, K + 1)."""
    return logits.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    inputs = make_inputs(shape, dtype, device)
    warped, deformation = ops.flow_warp(*inputs)
    assert (warped.dtype, deformation.dtype) == (dtype, torch.float32)
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
    inputs = [masks_last(inputs[0].float()), *inputs[1:3], channels_last(inputs[3][:1]).expand(2, -1, -1, -1, -1)]
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


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("wider", [0, 3, 16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LAST_SHAPES)
def test_channels_last(shape: tuple[int, ...], dtype: torch.dtype, wider: int, device: str) -> None:
    logits, kp_source, kp_driving, volume = make_inputs(shape, dtype, device)
    inputs = [masks_last(logits.float()), kp_source, kp_driving, channels_last(volume, wider)]
    warped, _ = ops.flow_warp(*inputs)
    assert warped.permute(0, 3, 4, 2, 1).is_contiguous()
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, inputs, exact(inputs))
    planes = [logits, kp_source, kp_driving, inputs[3]]  # of the volume's dtype, a mask after the other
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, planes, exact(planes))


def test_without_the_deformation(device: str) -> None:
    inputs = make_inputs((2, 3, 8, 2, 3, 4), torch.float32, device)
    for volume in (inputs[3], channels_last(inputs[3])):
        warped, deformation = ops.flow_warp(*inputs[:3], volume, want_deformation=False)
        assert (deformation.shape, deformation.dtype) == ((0,), torch.float32)
        expected, _ = ops.flow_warp(*inputs[:3], volume)
        assert warped.stride() == expected.stride()
        contract.assert_same([warped], [expected])
        with ops.use_backend("ref"):
            warped, deformation = ops.flow_warp(*inputs[:3], volume, want_deformation=False)
        assert (warped.stride(), deformation.shape) == (expected.stride(), (0,))


def test_expanded_volume_is_broadcast(device: str) -> None:
    logits, kp_source, kp_driving, volume = make_inputs((3, 5, 4, 2, 5, 6), torch.float32, device)
    for layout in (Tensor.contiguous, channels_last):
        expanded, repeated = layout(volume[:1]).expand(3, -1, -1, -1, -1), layout(volume[:1].expand(3, -1, -1, -1, -1))
        expected = ops.flow_warp(logits, kp_source, kp_driving, repeated)
        contract.assert_same(ops.flow_warp(logits, kp_source, kp_driving, expanded), expected)


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
    logits, kp_source, kp_driving, volume = make_inputs((1, 2, 4, 2, 4, 4), torch.float32, device)
    kp_source[0, 1, 0] = value
    for layout in (volume, channels_last(volume)):
        warped, deformation = ops.flow_warp(logits, kp_source, kp_driving, layout)
        assert torch.equal(warped, torch.zeros_like(warped))
        assert torch.isfinite(deformation[..., 1:]).all()


def test_minus_infinite_logits_switch_a_motion_off(device: str) -> None:
    logits, kp_source, kp_driving, volume = make_inputs((1, 3, 2, 2, 4, 4), torch.float32, device)
    logits[:, :2] = -math.inf
    inputs = [logits, kp_source, kp_driving, volume]
    contract.assert_close_to_reference(ops.flow_warp, ref.flow_warp, inputs, exact(inputs))


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
    inputs = make_inputs((2, 3, 4, 2, 3, 4), torch.float32, device)
    contract.check_opcheck(torch.ops.lpkernels.flow_warp, inputs)
    contract.check_opcheck(torch.ops.lpkernels.flow_warp, [*inputs[:3], channels_last(inputs[3]), False])


def test_compile(device: str) -> None:
    inputs = make_inputs((1, 3, 4, 2, 3, 4), torch.float32, device)
    contract.check_compile(ops.flow_warp, inputs)
    contract.check_compile(ops.flow_warp, [*inputs[:3], channels_last(inputs[3])])


def test_export(device: str) -> None:
    backend = ops.registry()["flow_warp"].choose(device).backend
    node = "grid_sampler" if backend == "ref" else "lpkernels.flow_warp"
    contract.check_export(ops.flow_warp, make_inputs((1, 3, 2, 2, 3, 4), torch.float32, device), node)


def test_repeatable(device: str) -> None:
    inputs = make_inputs((2, 5, 4, 3, 8, 9), torch.float32, device)
    contract.check_repeatable(ops.flow_warp, inputs)
    contract.check_repeatable(ops.flow_warp, [*inputs[:3], channels_last(inputs[3])])


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
    return {**dict(zip(names, make_inputs((2, 3, 2, 2, 3, 4), torch.float32, "cpu"), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(mask_logits=[1.0]), TypeError, "mask_logits must be a torch.Tensor, got list"),
        (bad(mask_logits=torch.zeros(2, 4, 2, 3)), ValueError, r"mask_logits must have shape .*got 4 dimensions"),
        (bad(mask_logits=torch.zeros(0, 4, 2, 3, 4)), ValueError, "no empty dimension"),
        (bad(mask_logits=torch.zeros(2, 1, 2, 3, 4)), ValueError, "at least 2 masks"),
        (bad(mask_logits=torch.zeros(2, 4, 1, 3, 4)), ValueError, "D, H, W of at least 2"),
        (bad(mask_logits=torch.zeros(2, 4, 2, 3, 4).double()), TypeError, "mask_logits must have dtype .*got float64"),
        (bad(mask_logits=torch.zeros(2, 4, 2, 3, 4).half()), TypeError, "must have dtype float32, got float16"),
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
