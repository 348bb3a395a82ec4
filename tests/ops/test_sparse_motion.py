"""sparse_motion: every backend against the float64 reference, which is held against the network's arithmetic."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lpkernels import ops, ref
from lpkernels.models.config import DenseMotionConfig
from lpkernels.models.dense_motion import DenseMotionNetwork
from tests.ops import contract

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [  # batch, keypoints, channels, depth, height, width
    (1, 21, 4, 3, 9, 33),
    (2, 7, 4, 2, 20, 6),
    (3, 1, 1, 2, 2, 2),
    (2, 40, 3, 2, 3, 5),
]
PUBLISHED = (1, 21, 4, 16, 64, 64)


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Compressed, its background sample, kp_source, kp_driving; some keypoints far outside, some not moving."""
    batch, keypoints, channels, *spatial = shape
    generator = torch.Generator().manual_seed(seed)
    compressed = torch.randn(batch, *spatial, channels, generator=generator).relu().to(dtype)
    source = 0.5 * torch.randn(batch, keypoints, 3, generator=generator)
    driving = source + 0.3 * torch.randn(batch, keypoints, 3, generator=generator)
    driving[:, ::5] = source[:, ::5]
    driving[:, 3::7] += 2
    tensors = [compressed, ops.background_sample(compressed), source, driving]
    return [tensor.to(device) for tensor in tensors]


def exact(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() for tensor in inputs]


def used_channels(shape: tuple[int, ...]) -> int:
    return (shape[1] + 1) * (shape[2] + 1)


def slice_of(inputs: list[Tensor], outputs: int, before: int, wider: int) -> tuple[Tensor, Tensor]:
    """An ``out`` of ``outputs`` channels in a buffer of NaN: the buffer and the slice."""
    compressed, batch = inputs[0], inputs[2].shape[0]
    shape = (batch, *compressed.shape[1:4], before + outputs + wider)
    buffer = torch.full(shape, math.nan, dtype=compressed.dtype, device=compressed.device)
    return buffer, buffer[..., before : before + outputs]


def moved(*inputs: Tensor) -> tuple[Tensor]:
    """The op with an ``out`` of its own, and without the channels that only pad."""
    used = (inputs[2].shape[1] + 1) * (inputs[0].shape[-1] + 1)
    return (ops.sparse_motion(*inputs)[..., :used],)


def moved_ref(*inputs: Tensor) -> tuple[Tensor]:
    return (ref.sparse_motion(*inputs),)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    inputs = make_inputs(shape, dtype, device)
    contract.assert_close_to_reference(moved, moved_ref, inputs, exact(inputs))
    out = ops.sparse_motion(*inputs)
    assert out.shape[-1] == ops.padded_channels(used_channels(shape))
    assert out[..., used_channels(shape) :].abs().sum() == 0


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [PUBLISHED, (2, 21, 4, 5, 33, 70), (3, 50, 4, 2, 64, 31)])
def test_matches_reference_at_full_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, dtype, "cuda")
    contract.assert_close_to_reference(moved, moved_ref, inputs, exact(inputs))


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), *[st.integers(2, 9)] * 3), st.integers(0, 2**16)
)
def test_any_shape(shape: tuple[int, ...], seed: int) -> None:
    inputs = make_inputs(shape, torch.float32, "cpu", seed)
    contract.assert_close_to_reference(moved, moved_ref, inputs, exact(inputs))


@pytest.mark.parametrize(
    ("shape", "outputs", "before", "wider"),
    [
        ((2, 21, 4, 2, 9, 33), 112, 32, 0),  # the network's: 16-byte stores
        ((2, 21, 4, 2, 9, 33), 120, 8, 24),
        ((2, 21, 4, 2, 9, 33), 111, 3, 2),
        ((1, 2, 4, 2, 3, 5), 400, 0, 1),
        ((1, 2, 3, 2, 3, 5), 12, 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_out_is_a_slice(
    shape: tuple[int, ...], outputs: int, before: int, wider: int, dtype: torch.dtype, device: str
) -> None:
    inputs = make_inputs(shape, dtype, device)
    buffer, out = slice_of(inputs, outputs, before, wider)
    assert ops.sparse_motion(*inputs, out) is out
    used = used_channels(shape)
    contract.assert_same([out[..., :used]], moved(*inputs))
    assert out[..., used:].abs().sum() == 0
    assert buffer[..., :before].isnan().all()
    assert buffer[..., before + outputs :].isnan().all()


def test_inputs_are_slices_and_one_source_serves_all(device: str) -> None:
    compressed, background, kp_source, kp_driving = make_inputs((3, 5, 4, 2, 5, 6), torch.float32, device)
    one = [compressed[:1], background[:1]]
    expected = moved(*[tensor.expand(3, -1, -1, -1, -1).contiguous() for tensor in one], kp_source, kp_driving)
    contract.assert_same(moved(*one, kp_source, kp_driving), expected)
    sliced = []
    for tensor, before in zip(one, (4, 3), strict=True):
        holder = torch.full((*tensor.shape[:4], 16), math.nan, device=device)
        holder[..., before : before + 4] = tensor
        sliced.append(holder[..., before : before + 4])
    (actual,) = moved(*sliced, contract.strided(kp_source), contract.strided(kp_driving))
    assert contract.relative_error(actual, expected[0]) < 1e-6  # on a GPU slices take another kernel


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -3e38])
@pytest.mark.parametrize("channels", [4, 3])
def test_wild_keypoints_stay_in_their_own_channels(value: float, channels: int, device: str) -> None:
    inputs = make_inputs((1, 3, channels, 3, 9, 5), torch.float32, device)
    expected = ops.sparse_motion(*inputs)
    for axis in range(3):
        wild = [tensor.clone() for tensor in inputs]
        wild[3][0, 1, axis] = value
        out = ops.sparse_motion(*wild)
        own = slice(2 * (channels + 1), 3 * (channels + 1))
        contract.assert_same(
            [out[..., : own.start], out[..., own.stop :]], [expected[..., : own.start], expected[..., own.stop :]]
        )
        assert (out[..., own.start + 1 : own.stop].nan_to_num(0) == 0).all()


def test_reference_is_the_networks_arithmetic() -> None:
    config = DenseMotionConfig(block_expansion=4, max_features=8, num_blocks=1, reshape_depth=3, compress=4)
    network = DenseMotionNetwork(config, num_kp=5, feature_channel=4, estimate_occlusion_map=False).double()
    compressed, background, kp_source, kp_driving = exact(make_inputs((2, 5, 4, 3, 6, 5), torch.float32, "cpu"))
    volume = compressed.permute(0, 4, 1, 2, 3)
    motions = network.create_sparse_motions(volume, kp_driving, kp_source)
    heatmaps = network.create_heatmap_representations(volume, kp_driving, kp_source)
    deformed = network.create_deformed_feature(volume, motions)
    expected = torch.cat([heatmaps, deformed], dim=2).flatten(1, 2).permute(0, 2, 3, 4, 1)
    background = ref.background_sample(compressed)
    assert contract.relative_error(ref.sparse_motion(compressed, background, kp_source, kp_driving), expected) < 1e-12


def test_background_sample_is_a_still_motion(device: str) -> None:
    inputs = make_inputs((2, 1, 4, 3, 5, 4), torch.float32, device)
    still = ops.sparse_motion(*inputs[:3], inputs[2].clone())
    torch.testing.assert_close(ops.background_sample(inputs[0]), still[..., 6:10], rtol=1e-5, atol=1e-6)
    half = ops.background_sample(inputs[0].half())
    assert (half.dtype, half.is_contiguous()) == (torch.float16, True)


def with_out(shape: tuple[int, ...], device: str) -> list[Tensor]:
    inputs = make_inputs(shape, torch.float32, device)
    return [*inputs, torch.zeros(*inputs[0].shape[:4], used_channels(shape) + 2, device=device)]


def test_opcheck(device: str) -> None:
    choice = ops.registry()["sparse_motion"].choose(device)
    if choice.backend == "ref":
        pytest.skip(f"the op library has no kernel here: {choice.passed}")
    contract.check_opcheck(torch.ops.lpkernels.sparse_motion, with_out((2, 3, 4, 2, 3, 4), device))


def test_compile(device: str) -> None:
    contract.check_compile(moved, make_inputs((1, 3, 4, 2, 3, 4), torch.float32, device))
    contract.check_compile(moved, with_out((1, 3, 4, 2, 3, 4), device))


def test_repeatable(device: str) -> None:
    contract.check_repeatable(moved, make_inputs((2, 9, 4, 3, 10, 9), torch.float32, device), 20)


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(moved, make_inputs(PUBLISHED, torch.float16, "cuda"))


@pytest.mark.gpu
def test_graph_capture() -> None:
    def change(inputs: contract.Inputs) -> None:
        inputs[0].mul_(0.5)
        inputs[3].mul_(-0.5)

    contract.check_graph_capture(moved, make_inputs(PUBLISHED, torch.float16, "cuda"), change)


def test_gradients_are_refused(device: str) -> None:
    inputs = make_inputs((1, 2, 2, 2, 3, 3), torch.float32, device)
    inputs[2].requires_grad_()
    with pytest.raises(RuntimeError, match=r"sparse_motion has no gradient.*lpkernels\.ref\.sparse_motion"):
        ops.sparse_motion(*inputs)


def bad(**changed: object) -> dict[str, object]:
    names = ("compressed", "background", "kp_source", "kp_driving", "out")
    return {**dict(zip(names, with_out((2, 3, 4, 2, 3, 4), "cpu"), strict=True)), **changed}


def overlapping() -> dict[str, object]:
    arguments = bad()
    buffer = torch.zeros(2, 2, 3, 4, 24)
    return {**arguments, "compressed": buffer[..., 2:6], "out": buffer}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(compressed=1), TypeError, "compressed must be a torch.Tensor, got int"),
        (bad(compressed=torch.zeros(2, 2, 3, 4)), ValueError, "compressed must have shape .*got 4 dimensions"),
        (bad(compressed=torch.zeros(2, 1, 3, 4, 4)), ValueError, "compressed must have D, H, W of at least 2"),
        (bad(compressed=torch.zeros(2, 4, 2, 3, 4).movedim(1, -1)), ValueError, "compressed must be channels-last"),
        (bad(compressed=torch.zeros(2, 2, 3, 4, 4).double()), TypeError, "compressed must have dtype"),
        (bad(compressed=torch.zeros(3, 2, 3, 4, 4), background=torch.zeros(3, 2, 3, 4, 4)), ValueError, "batch 1 or 2"),
        (bad(background=torch.zeros(1, 2, 3, 4, 4)), ValueError, "background must have shape"),
        (bad(background=torch.zeros(2, 2, 3, 4, 4).half()), TypeError, "background must have the dtype of compressed"),
        (bad(kp_source=torch.zeros(2, 3, 2)), ValueError, r"kp_source must have shape \(B, K, 3\)"),
        (bad(kp_source=torch.zeros(2, 3, 3).half()), TypeError, "kp_source must have dtype float32"),
        (bad(kp_driving=torch.zeros(2, 4, 3)), ValueError, r"kp_driving must have shape \(2, 3, 3\)"),
        (bad(kp_driving=torch.zeros(2, 3, 3, device="meta")), ValueError, "kp_driving must be on the device"),
        (bad(out=torch.zeros(2, 2, 3, 4, 19)), ValueError, r"out must have at least \(K \+ 1\) \* \(C \+ 1\) = 20"),
        (bad(out=torch.zeros(1, 2, 3, 4, 24)), ValueError, "out must have shape"),
        (bad(out=torch.zeros(2, 2, 3, 4, 24).half()), TypeError, "out must have the dtype of compressed"),
        (overlapping(), ValueError, "out must not overlap compressed"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.sparse_motion(**arguments)


@pytest.mark.parametrize(
    "changed",
    [
        {"compressed": torch.zeros(2, 2, 3, 4)},
        {"compressed": torch.zeros(2, 4, 2, 3, 4).movedim(1, -1)},
        {"background": torch.zeros(2, 2, 3, 4, 3)},
        {"kp_source": torch.zeros(2, 3, 3).double()},
        {"kp_driving": torch.zeros(3, 2, 3).transpose(0, 1)},
        {"out": torch.zeros(2, 2, 3, 4, 19)},
        {"out": torch.zeros(2, 2, 3, 5, 24)},
        {"out": torch.zeros(2, 2, 3, 4, 24).half()},
    ],
)
def test_the_bare_op_checks_too(changed: dict[str, Tensor]) -> None:
    if ops.registry()["sparse_motion"].choose("cpu").backend != "cpu":
        pytest.skip("the op library is not built")
    with pytest.raises(RuntimeError, match="sparse_motion: "):
        torch.ops.lpkernels.sparse_motion(*bad(**changed).values())
