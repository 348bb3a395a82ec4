"""keypoint_transform: every backend against the float64 reference in every option, and the packed motion."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lpkernels import ops, ref
from lpkernels.ops.keypoint_transform import heads_size, motion_size
from tests.ops import contract

NAMES = ("driving", "kp", "x_s", "source", "first", "taken", "multiplier")
OPTIONS = [
    dict(zip(("relative", "pose", "scale", "first", "taken", "multiplier"), flags, strict=True))
    for flags in itertools.product((True, False), repeat=6)
]


def make_inputs(
    batch: int = 2, keypoints: int = 21, bins: int = 66, device: str = "cpu", seed: int = 0, sources: int = 1
) -> list[Tensor]:
    """All seven tensors, in a trained model's range; ``sources`` rows of what may have one for all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*size, generator=generator)

    def motion(rows: int) -> Tensor:
        R = torch.linalg.qr(normal(rows, 3, 3))[0]
        return ops.pack_motion(
            normal(rows, keypoints, 3, scale=0.03), R, normal(rows, 3, scale=0.1), 1.3 + normal(rows, 1, scale=0.1)
        )

    driving = motion(batch)
    if bins:
        exp, _, t, scale = ops.unpack_motion(driving)
        kp = normal(batch, 3 * keypoints)
        driving = torch.cat([normal(batch, 3 * bins, scale=3), t, exp.flatten(1), scale, kp], dim=1)
    tensors = [
        driving,
        normal(sources, keypoints, 3, scale=0.3),
        normal(sources, keypoints, 3, scale=0.3),
        motion(sources),
        motion(sources),
        torch.rand(keypoints, 3, generator=generator) < 0.5,
        1 + normal(sources, scale=0.2),
    ]
    return [tensor.to(device) for tensor in tensors]


def with_options(function: Any, bins: int = 66, strength: float = 0.7, **flags: bool) -> contract.Function:
    """``function`` of the seven tensors; those whose flag is False are not passed on."""
    options = {name: flags.get(name, True) for name in ("relative", "pose", "scale")}

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        kept = [tensor if flags.get(name, True) else None for name, tensor in zip(NAMES, tensors, strict=True)]
        return tuple(function(*kept, bins, *options.values(), strength))

    return call


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.cpu() if tensor.dtype == torch.bool else tensor.double().cpu() for tensor in inputs]


def check(inputs: list[Tensor], **options: Any) -> None:
    op, truth = (with_options(function, **options) for function in (ops.keypoint_transform, ref.keypoint_transform))
    contract.assert_close_to_reference(op, truth, inputs, exact(inputs))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("bins", [66, 0])
def test_every_option(bins: int, device: str) -> None:
    inputs = make_inputs(bins=bins, device=device)
    for options in OPTIONS:
        check(inputs, bins=bins, **options)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("batch", "keypoints", "bins", "sources"), [(1, 21, 66, 1), (3, 1, 1, 3), (2, 70, 33, 1), (3, 21, 130, 3)]
)
def test_sizes(batch: int, keypoints: int, bins: int, sources: int, device: str) -> None:
    check(make_inputs(batch, keypoints, bins, device, sources=sources), bins=bins)


@pytest.mark.usefixtures("poisoned")
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 30), st.integers(0, 70), st.integers(0, 2**16), st.sampled_from(OPTIONS))
def test_any_shape(batch: int, keypoints: int, bins: int, seed: int, options: dict[str, bool]) -> None:
    check(make_inputs(batch, keypoints, bins, seed=seed, sources=batch), bins=bins, **options)


def test_reference_rotation_and_angles() -> None:
    """One certain bin an angle: R is the product of the three axes' rotations, transposed."""
    driving, kp, x_s, source, first, _, _ = exact(make_inputs(batch=1))
    bins = {"pitch": 40, "yaw": 25, "roll": 33}
    for row, index in enumerate(bins.values()):
        driving[:, 66 * row : 66 * (row + 1)] = -1e6
        driving[:, 66 * row + index] = 0
    _, motion = ref.keypoint_transform(driving, kp, x_s, source, first, None, None, 66, True, True, True, 1.0)
    rotations = []
    for axis, index in enumerate(bins.values()):
        angle = math.radians(3.0 * index - 97.5)
        cross = torch.zeros(3, 3, dtype=torch.float64)  # the axis's cross product, for Rodrigues' formula
        cross[(axis + 2) % 3, (axis + 1) % 3], cross[(axis + 1) % 3, (axis + 2) % 3] = 1, -1
        rotations.append(
            torch.eye(3, dtype=torch.float64) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
        )
    rx, ry, rz = rotations
    torch.testing.assert_close(ops.unpack_motion(motion)[1][0], (rz @ ry @ rx).T, atol=1e-12, rtol=0)


def test_reference_is_differentiable() -> None:
    inputs = exact(make_inputs(batch=1, keypoints=2, bins=4))
    call = with_options(ref.keypoint_transform, bins=4)
    floats = [tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs]
    assert torch.autograd.gradcheck(call, floats)


def test_the_first_frame_is_its_own(device: str) -> None:
    inputs = make_inputs(device=device)
    alone = ops.keypoint_transform(*inputs[:4])
    contract.assert_same(ops.keypoint_transform(*inputs[:4], alone[1]), alone)


def test_a_packed_motion_comes_back_as_it_was(device: str) -> None:
    inputs = make_inputs(bins=0, device=device)
    x_d, motion = ops.keypoint_transform(*inputs, bins=0)
    assert torch.equal(motion, inputs[0])
    assert motion.data_ptr() != inputs[0].data_ptr()
    heads = make_inputs(device=device)
    by_heads, read = ops.keypoint_transform(*heads)
    by_motion, _ = ops.keypoint_transform(read, *heads[1:], bins=0)
    assert torch.equal(by_heads, by_motion)
    assert not torch.equal(x_d, by_heads)


def test_packing_is_undone_by_unpacking() -> None:
    parts = torch.rand(2, 5, 3), torch.rand(2, 3, 3), torch.rand(2, 3), torch.rand(2, 1)
    packed = ops.pack_motion(*parts)
    assert packed.shape == (2, motion_size(5))
    contract.assert_same(ops.unpack_motion(packed), parts)


@pytest.mark.usefixtures("poisoned")
def test_strided_inputs(device: str) -> None:
    inputs = make_inputs(batch=3, sources=3, device=device)
    expected = ops.keypoint_transform(*inputs)
    loose = [tensor if tensor.dim() == 1 else contract.strided(tensor) for tensor in inputs[:5]]
    contract.assert_same(ops.keypoint_transform(*loose, inputs[5].T.contiguous().T, inputs[6][:, None, None]), expected)
    wider = torch.full((3, inputs[0].shape[1] + 3), float("nan"), device=device)
    wider[:, : inputs[0].shape[1]] = inputs[0]
    contract.assert_same(ops.keypoint_transform(wider[:, : inputs[0].shape[1]], *inputs[1:]), expected)


def test_one_source_serves_the_batch(device: str) -> None:
    inputs = make_inputs(batch=3, device=device)
    repeated = [inputs[0], *(tensor.expand(3, *tensor.shape[1:]) for tensor in inputs[1:5])]
    expanded = ops.keypoint_transform(*repeated, inputs[5], inputs[6].expand(3))
    contract.assert_same(ops.keypoint_transform(*inputs), expanded)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_wild_heads_stay_in_their_row(value: float, device: str) -> None:
    inputs = make_inputs(device=device)
    expected = ops.keypoint_transform(*inputs)
    inputs[0][0, :198] = value
    for actual, before in zip(ops.keypoint_transform(*inputs), expected, strict=True):
        assert not actual[0].isfinite().all()
        assert torch.equal(actual[1], before[1])


def bare(inputs: list[Tensor]) -> list[Any]:
    return [*inputs, 66, True, True, True, 0.7]


def test_opcheck(device: str) -> None:
    choice = ops.registry()["keypoint_transform"].choose(device)
    if choice.backend == "ref":
        pytest.skip(f"the op library has no kernel here: {choice.passed}")
    inputs = bare(make_inputs(device=device))
    contract.check_opcheck(torch.ops.lpkernels.keypoint_transform, inputs)
    contract.check_opcheck(torch.ops.lpkernels.keypoint_transform, [*inputs[:4], None, None, None, *inputs[7:]])


def test_compile(device: str) -> None:
    contract.check_compile(with_options(ops.keypoint_transform), make_inputs(device=device))


def test_repeatable(device: str) -> None:
    contract.check_repeatable(with_options(ops.keypoint_transform), make_inputs(device=device))


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(with_options(ops.keypoint_transform), make_inputs(device="cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(-0.5)
        inputs[4].add_(0.1)

    contract.check_graph_capture(with_options(ops.keypoint_transform), make_inputs(device="cuda"), change)


@pytest.mark.gpu
def test_second_device() -> None:
    contract.check_second_device(with_options(ops.keypoint_transform), make_inputs())


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs(device=device)
    inputs[0].requires_grad_()
    with pytest.raises(RuntimeError, match="keypoint_transform has no gradient"):
        ops.keypoint_transform(*inputs)


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(NAMES, make_inputs(), strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(driving=1), TypeError, "driving must be a torch.Tensor, got int"),
        (bad(driving=torch.zeros(2, 327)), ValueError, r"driving must have shape \(B, 328\), got \(2, 327\)"),
        (bad(bins=0), ValueError, r"driving must have shape \(B, 76\)"),
        (bad(bins=-1), ValueError, "bins must be 0 or more, got -1"),
        (bad(driving=torch.zeros(0, 328)), ValueError, "no empty dimension"),
        (bad(driving=torch.zeros(2, 328).half()), TypeError, "driving must have dtype float32, got float16"),
        (bad(kp=None), TypeError, "kp must be a torch.Tensor, got NoneType"),
        (bad(kp=torch.zeros(3, 21, 3)), ValueError, r"kp must have shape \(2, 21, 3\), got \(3, 21, 3\)"),
        (bad(x_s=torch.zeros(1, 20, 3)), ValueError, r"x_s must have shape \(1, 21, 3\)"),
        (bad(source=torch.zeros(1, 75)), ValueError, r"source must have shape \(1, 76\)"),
        (bad(first=torch.zeros(3, 76)), ValueError, r"first must have shape \(2, 76\)"),
        (bad(first=torch.zeros(1, 76).double()), TypeError, "first must have dtype float32, got float64"),
        (bad(taken=torch.zeros(21, 3)), TypeError, "taken must have dtype bool, got float32"),
        (bad(taken=torch.zeros(3, 21).bool()), ValueError, r"taken must have shape \(21, 3\)"),
        (bad(multiplier=2.0), TypeError, "multiplier must be a torch.Tensor, got float"),
        (bad(multiplier=torch.ones(3)), ValueError, r"multiplier must have shape \(2\), got \(3,\)"),
        (
            bad(source=torch.zeros(1, 76, device="meta")),
            ValueError,
            "source must be on the device of the driving motion",
        ),
        (bad(taken=torch.zeros(21, 3, device="meta").bool()), ValueError, "taken must be on the device of driving"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.keypoint_transform(**arguments)


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, torch.zeros(2, heads_size(20))),
        (0, torch.zeros(328)),
        (1, torch.zeros(1, 21, 2)),
        (2, torch.zeros(1, 3, 21).transpose(1, 2)),
        (3, torch.zeros(3, 76)),
        (4, torch.zeros(1, 76).double()),
        (5, torch.zeros(21, 3)),
        (6, torch.zeros(3)),
        (7, -1),
    ],
)
def test_the_bare_op_checks_too(position: int, value: Any) -> None:
    if ops.registry()["keypoint_transform"].choose("cpu").backend != "cpu":
        pytest.skip("the op library is not built")
    arguments = bare(make_inputs())
    arguments[position] = value
    with pytest.raises(RuntimeError, match="keypoint_transform: "):
        torch.ops.lpkernels.keypoint_transform(*arguments)
