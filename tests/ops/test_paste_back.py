"""paste_back: every backend against the original's arithmetic, the mask's tile, what stays untouched, bad arguments."""

from __future__ import annotations

import functools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lpkernels import ops, ref
from tests.ops import contract
from tests.ops.paste_inputs import (
    FACE,
    PLACES,
    Call,
    assert_levels,
    expected,
    flat,
    levels,
    make_call,
    make_mask,
    similarity,
)

BACKENDS = ["cpu", "ref"]


def sample(image: Tensor, matrix: list[list[float]], x: int, y: int) -> list[float]:
    """Bilinear sample of (h, w, C) where the inverse of ``matrix`` puts (x, y), zeros outside: one pixel in Python."""
    (u,), (v,), _ = np.linalg.inv(np.array([*matrix, [0, 0, 1]])) @ np.array([[x], [y], [1]])
    total = [0.0] * image.shape[2]
    for row in (math.floor(v), math.floor(v) + 1):
        for column in (math.floor(u), math.floor(u) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                weight = (1 - abs(v - row)) * (1 - abs(u - column))
                total = [t + weight * float(value) for t, value in zip(total, image[row, column], strict=True)]
    return total


@pytest.mark.parametrize("place", PLACES)
def test_reference_is_the_originals_arithmetic(place: str) -> None:
    matrix, face, mask = PLACES[place], levels(1, 16, 16, 3), make_mask(16, 16)
    source = levels(48, 70, 3, seed=1)
    box, tile = ops.warp_mask(mask, matrix, (48, 70))
    pasted = ref.paste_back(face, source, tile, [number for row in matrix for number in row], box)[0]
    for y in range(48):
        for x in range(70):
            weight = round(sample(mask[..., None], matrix, x, y)[0]) / 255
            for c, value in enumerate(sample(face[0], matrix, x, y)):
                truth = weight * round(value) + (1 - weight) * int(source[y, x, c])
                assert abs(int(pasted[y, x, c]) - math.floor(truth + 1e-9)) <= (abs(value % 1 - 0.5) < 1e-6)


def test_reference_is_within_a_level_of_opencv() -> None:
    """Green of what OpenCV 5.0 makes of these pictures by the original's formula; 4.10 differs from it by one level."""
    opencv = [
        [170, 164, 158, 152, 146, 140, 134, 128, 122, 116, 110],
        [165, 159, 153, 147, 140, 135, 129, 123, 117, 111, 105],
        [160, 154, 148, 142, 143, 142, 134, 122, 112, 106, 100],
        [155, 149, 143, 142, 154, 162, 161, 155, 144, 111, 95],
        [150, 144, 138, 149, 167, 176, 183, 189, 159, 100, 90],
        [145, 139, 138, 159, 179, 186, 193, 188, 144, 91, 85],
        [140, 134, 144, 166, 184, 196, 203, 181, 121, 86, 80],
        [135, 129, 129, 140, 155, 172, 191, 170, 92, 81, 75],
        [130, 124, 118, 112, 106, 113, 134, 140, 82, 76, 70],
    ]
    y, x, c = torch.meshgrid(torch.arange(9), torch.arange(11), torch.arange(3), indexing="ij")
    face, source = ((90 + 9 * x + 7 * y + 40 * c) % 256)[:8, :8].byte(), ((200 - 6 * x - 5 * y - 30 * c) % 256).byte()
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[1:7, 1:7], mask[2:6, 2:6] = 150, 255
    matrix = [[0.9, -0.3, 3.2], [0.3, 0.9, 0.6]]
    box, tile = ops.warp_mask(mask, matrix, (9, 11))
    pasted = ops.paste_back(face[None], source, tile, matrix, box)[0, ..., 1]
    assert int((pasted.int() - torch.tensor(opencv)).abs().max()) <= 1


@pytest.mark.parametrize("place", PLACES)
def test_mask_tile_is_the_warped_mask_and_nothing_more(place: str) -> None:
    mask, matrix = make_mask(16, 16), PLACES[place]
    full = torch.zeros(48, 70, dtype=torch.uint8)
    for y in range(48):
        for x in range(70):
            full[y, x] = math.floor(sample(mask[..., None], matrix, x, y)[0] + 0.5)
    (x, y, width, height), tile = ops.warp_mask(mask, matrix, (48, 70))
    assert tile.shape == (height, width)
    assert (full[y : y + height, x : x + width].int() - tile.int()).abs().max() <= 1
    rows, columns = full.nonzero().T
    assert (x, y) == (int(columns.min()), int(rows.min()))
    assert (x + width, y + height) == (int(columns.max()) + 1, int(rows.max()) + 1)
    for floats in (mask.float() / 255, mask.double() / 255):
        box, same = ops.warp_mask(floats, [*matrix, [0, 0, 1]], (48, 70))
        assert box == (x, y, width, height)
        assert (same.int() - tile.int()).abs().max() <= 1


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("face", "picture"), [((1, 40, 40), (48, 70)), ((3, 40, 40), (47, 71)), ((2, 33, 21), (2, 49, 65))]
)
def test_matches_reference(place: str, face: tuple[int, ...], picture: tuple[int, ...], device: str) -> None:
    call = make_call(place, face, picture, device)
    pasted = ops.paste_back(**call)
    assert pasted.device.type == device
    assert_levels(pasted, expected(call))


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 4), st.tuples(*[st.floats(-60, 60)] * 2), st.integers(2, 9), st.integers(1, 20))
def test_any_matrix_and_size(linear: tuple[float, ...], shift: tuple[float, ...], face: int, height: int) -> None:
    a, b, c, d = linear
    matrix = [[a, b, shift[0]], [c, d, shift[1]]]
    image, source = levels(1, face, face, 3), levels(height, 17, 3, seed=1)
    mask = torch.full((face, face), 255, dtype=torch.uint8)
    try:
        box, tile = ops.warp_mask(mask, matrix, (height, 17))
    except ValueError:  # singular, or all of it outside
        return
    call = {"image": image, "source": source, "mask": tile, "matrix": matrix, "box": box}
    # A nearly singular matrix puts neighbouring pixels far apart in the face: float32 loses the fraction there.
    if abs(a * d - b * c) > 0.05:
        assert int((ops.paste_back(**call).int() - expected(call).int()).abs().max()) <= 1
    else:
        ops.paste_back(**call)


def test_far_from_the_origin_positions_stay_exact(device: str) -> None:
    matrix = similarity(0.9, 3, 29950.3, 1.6)
    box, tile = ops.warp_mask(make_mask().to(device), matrix, (50, 30000))
    call = {"image": levels(*FACE, 3), "source": levels(50, 30000, 3, seed=1), "mask": tile, "matrix": matrix}
    call = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in call.items()}
    x, y, width, height = call["box"] = box
    part = (slice(None), slice(y, y + height), slice(x, x + width))
    assert_levels(ops.paste_back(**call)[part], expected(call)[part])


def test_whole_pixels_come_through_unchanged(device: str) -> None:
    image, source = levels(1, 40, 40, 3).to(device), levels(60, 70, 3, seed=1).to(device)
    mask = torch.full((40, 40), 255, dtype=torch.uint8, device=device)
    box, tile = ops.warp_mask(mask, [1, 0, 12, 0, 1, 7], (60, 70))
    assert box == (12, 7, 40, 40)
    pasted = ops.paste_back(image, source, tile, np.array([[1.0, 0, 12], [0, 1, 7], [0, 0, 1]]), box)
    assert torch.equal(pasted[:, 7:47, 12:52], image)


def test_what_is_equal_is_not_darkened(device: str) -> None:
    source = levels(40, 40, 3).to(device)
    box, tile = ops.warp_mask(make_mask().to(device), torch.eye(3), (40, 40))
    assert torch.equal(ops.paste_back(source[None], source, tile, torch.eye(3), box)[0], source)


def test_only_pixels_of_the_mask_are_written(device: str) -> None:
    call = make_call("larger, over an edge", device=device)
    truth = ops.paste_back(**call)
    out = torch.full_like(truth, 99)
    assert ops.paste_back(**call, copy_rest=False, out=out) is out
    x, y, width, height = call["box"]
    written = torch.zeros(truth.shape[1:3], dtype=torch.bool, device=device)
    written[y : y + height, x : x + width] = call["mask"] > 0
    assert torch.equal(out[:, written], truth[:, written])
    assert bool((out[:, ~written] == 99).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_leaves_the_rest_alike(backend: str) -> None:
    call = make_call("inside")
    with ops.use_backend("ref"):
        truth = ops.paste_back(**call, copy_rest=False, out=torch.full((2, 48, 70, 3), 99, dtype=torch.uint8))
    if reason := ops.registry()["paste_back"].backends[backend].why_not("cpu"):
        pytest.skip(reason)
    with ops.use_backend(backend):
        actual = ops.paste_back(**call, copy_rest=False, out=torch.full((2, 48, 70, 3), 99, dtype=torch.uint8))
        assert_levels(ops.paste_back(**call), expected(call))
    assert_levels(actual, truth)


@pytest.mark.parametrize("picture", [(1, 48, 70), (48, 70)])
def test_in_place(picture: tuple[int, ...], device: str) -> None:
    call = make_call("larger, over an edge", (1, 40, 40), picture, device)
    truth = ops.paste_back(**call)
    out = call["source"].view(1, 48, 70, 3)
    assert ops.paste_back(**call, out=out) is out
    assert torch.equal(out, truth)


def test_strided_inputs(device: str) -> None:
    call = make_call(device=device)
    truth = ops.paste_back(**call)
    for name in ("image", "source", "mask"):
        wide = call[name].repeat_interleave(2, dim=1)
        call[name] = wide[:, ::2]
        assert not call[name].is_contiguous()
    assert torch.equal(ops.paste_back(**call), truth)


@pytest.mark.parametrize("copy_rest", [True, False])
def test_opcheck(copy_rest: bool, device: str) -> None:
    if reason := ops.registry()["paste_back"].backends[device].why_not(device):
        pytest.skip(reason)
    contract.check_opcheck(torch.ops.lpkernels.paste_back, flat(make_call(device=device), copy_rest))


def function(call: Call) -> tuple[contract.Function, list[Tensor]]:
    """The op as a function of its tensors, and those."""
    fixed = {"matrix": call["matrix"], "box": call["box"]}

    def run(image: Tensor, source: Tensor, mask: Tensor) -> tuple[Tensor]:
        return (ops.paste_back(image, source, mask, **fixed),)

    return run, [call["image"], call["source"], call["mask"]]


def test_compile(device: str) -> None:
    contract.check_compile(*function(make_call(device=device)))


@functools.cache
def real() -> tuple[contract.Function, list[Tensor]]:
    """A published frame's size in a full HD picture."""
    matrix = similarity(1.1, 8, 700, 200)
    box, tile = ops.warp_mask(make_mask(512, 512).cuda(), matrix, (1080, 1920))
    source = levels(1080, 1920, 3, seed=1).cuda()
    return function(
        {"image": levels(1, 512, 512, 3).cuda(), "source": source, "mask": tile, "matrix": matrix, "box": box}
    )


@pytest.mark.gpu
def test_full_hd_matches_reference() -> None:
    run, tensors = real()
    with ops.use_backend("ref"):
        truth = run(*[tensor.cpu() for tensor in tensors])[0]
    assert_levels(run(*tensors)[0], truth)


@pytest.mark.gpu
def test_repeatable() -> None:
    contract.check_repeatable(*real())


@pytest.mark.gpu
def test_second_stream() -> None:
    contract.check_second_stream(*real())


@pytest.mark.gpu
def test_graph_capture() -> None:
    run, tensors = real()
    contract.check_graph_capture(run, [tensor.clone() for tensor in tensors], lambda inputs: inputs[0].add_(40))


@pytest.mark.gpu
def test_second_device() -> None:
    contract.check_second_device(*real())
