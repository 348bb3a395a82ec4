"""Each exact rewrite against the form it replaces, in float64 at 1e-10, borders included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lpkernels import rewrites
from lpkernels.ref._classes import conv_from_classes

TOLERANCE = 1e-10
DOUBLE = torch.float64


def normal(*size: int) -> Tensor:
    return torch.randn(*size, dtype=DOUBLE)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).norm() <= TOLERANCE * expected.norm()


def run_phases(x: Tensor, phases: list[rewrites.Phase], scale: int, upsampled: tuple[bool, ...]) -> Tensor:
    """Every phase's conv on the small grid, written to its place in the large one; NaN where no phase wrote."""
    small = x.shape[2:]
    large = [size * scale if enlarged else size for size, enlarged in zip(small, upsampled, strict=True)]
    out = torch.full((x.shape[0], phases[0].weight.shape[0], *large), float("nan"), dtype=x.dtype)
    conv = F.conv2d if len(small) == 2 else F.conv3d
    for phase in phases:
        taps = phase.weight.shape[2:]
        pads = [(-first, first + count - 1) for first, count in zip(phase.first, taps, strict=True)]
        padded = F.pad(x, [side for pair in reversed(pads) for side in pair])
        answer = conv(padded, phase.weight)
        for residues in (
            torch.cartesian_prod(*[torch.tensor(r) for r in phase.residues]).reshape(-1, len(small)).tolist()
        ):
            place = [
                slice(r, None, scale) if enlarged else slice(None)
                for r, enlarged in zip(residues, upsampled, strict=True)
            ]
            out[(slice(None), slice(None), *place)] = answer
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.tuples(st.integers(1, 5), st.integers(1, 6)))
def test_upsample_conv_2d(scale: int, size: tuple[int, int]) -> None:
    x, weight = normal(2, 3, *size), normal(4, 3, 3, 3)
    expected = F.conv2d(F.interpolate(x, scale_factor=scale), weight, padding=1)
    phases = rewrites.upsample_conv_phases(weight, scale, (True, True))
    assert_equal(run_phases(x, phases, scale, (True, True)), expected)


def test_upsample_conv_3d_keeps_depth() -> None:
    x, weight, upsampled = normal(1, 3, 4, 3, 5), normal(2, 3, 3, 3, 3), (False, True, True)
    expected = F.conv3d(F.interpolate(x, scale_factor=(1, 2, 2)), weight, padding=1)
    assert_equal(run_phases(x, rewrites.upsample_conv_phases(weight, 2, upsampled), 2, upsampled), expected)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([2, 4]), st.tuples(st.integers(1, 5), st.integers(1, 6)))
def test_upsample_conv_products_2d(scale: int, size: tuple[int, int]) -> None:
    """Each large pixel is the sum of the products of its axis' differences, the shared one among them."""
    x, weight = normal(2, 3, *size), normal(4, 3, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1))
    down = torch.stack([padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]])
    down = torch.stack([down[0] - down[1], down[1], down[2] - down[1]])
    both = torch.stack([down[..., :-2] - down[..., 1:-1], down[..., 1:-1], down[..., 2:] - down[..., 1:-1]], 1)
    products = torch.einsum("pqoc,pqbchw->pqbohw", rewrites.upsample_conv_products(weight), both)
    large = normal(2, 4, *(scale * side for side in size))
    of_row = {0: (0, 1), scale - 1: (1, 2)}  # the products that make a large row, or column
    for r in range(scale):
        for c in range(scale):
            parts = [products[p, q] for p in of_row.get(r, (1,)) for q in of_row.get(c, (1,))]
            large[:, :, r::scale, c::scale] = torch.stack(parts).sum(0)
    assert_equal(large, F.conv2d(F.interpolate(x, scale_factor=scale), weight, padding=1))


@pytest.mark.parametrize("scale", [2, 4])
def test_phases_of_products(scale: int) -> None:
    weight, upsampled = normal(5, 4, 3, 3, 3), (False, True, True)
    products = rewrites.upsample_conv_products(weight).movedim(3, -1)
    phases = rewrites.phases_of_products(products, scale)
    for phase, expected in zip(phases, rewrites.upsample_conv_phases(weight, scale, upsampled), strict=True):
        taps = expected.weight.movedim(1, -1)
        height, width = taps.shape[2:4]
        assert_equal(phase[:, :, 2 - height :, 2 - width :], taps)
        assert phase.abs().sum().isclose(phase[:, :, 2 - height :, 2 - width :].abs().sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3))
def test_row_pair_kernels(height: int, width: int) -> None:
    """Ten products with sums and differences of eight rows make two rows, whichever border they lie at."""
    x, weight = normal(2, 3, height, width), normal(4, 3, 7, 1)
    kernels = rewrites.row_pair_kernels(weight, 2)[..., 0]
    even = height + height % 2
    padded = F.pad(x, (0, 0, 3, 4))
    u = [padded[:, :, j : j + even : 2] for j in range(8)]

    def product(rows: Tensor, kernel: int) -> Tensor:
        return torch.einsum("oc,bchw->bohw", kernels[:, :, kernel], rows)

    s = product(u[1] + u[2], 0) + product(u[4] + u[5], 2)
    d = product(u[2] - u[1], 1) + product(u[5] - u[4], 3)
    first = s + d + product(u[0] - u[2], 4) + product(u[3] - u[5], 6) + product(u[6], 8)
    second = s - d + product(u[3] - u[1], 5) + product(u[6] - u[4], 7) + product(u[7], 8)
    y = torch.stack([first, second], 3).flatten(2, 3)[:, :, :height]
    assert_equal(y, F.conv2d(x, weight, padding=(3, 0)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_taps_of_row_pairs(axis: int) -> None:
    weight = normal(7, 3, 4).movedim(0, axis)
    kernels = rewrites.row_pair_kernels(weight, axis)
    assert kernels.shape[axis] == 9
    assert_equal(rewrites.taps_of_row_pairs(kernels, axis), weight)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3))
def test_winograd_kernels(height: int, width: int) -> None:
    """Four products with sums and differences of four rows make two rows, whichever border they lie at."""
    x, weight = normal(2, 3, height, width), normal(4, 3, 3, 1)
    kernels = rewrites.winograd_kernels(weight, 2)[..., 0]
    even = height + height % 2
    padded = F.pad(x, (0, 0, 1, 2))
    u = [padded[:, :, j : j + even : 2] for j in range(4)]
    operands = [u[1] + u[2], u[2] - u[1], u[0] - u[2], u[3] - u[1]]
    s, d, first, second = (torch.einsum("oc,bchw->bohw", kernels[:, :, i], rows) for i, rows in enumerate(operands))
    y = torch.stack([s + d + first, s - d + second], 3).flatten(2, 3)[:, :, :height]
    assert_equal(y, F.conv2d(x, weight, padding=(1, 0)))


@pytest.mark.parametrize("axis", [0, 1, -3])
def test_taps_of_winograd(axis: int) -> None:
    weight = normal(3, 2, 5, 4).movedim(0, axis)
    kernels = rewrites.winograd_kernels(weight, axis)
    assert kernels.shape[axis] == 4
    assert_equal(rewrites.taps_of_winograd(kernels, axis), weight)


@pytest.mark.parametrize(("scale", "kernels", "taps"), [(2, 4, 16), (4, 9, 25)])
def test_upsample_conv_counts(scale: int, kernels: int, taps: int) -> None:
    phases = rewrites.upsample_conv_phases(normal(1, 1, 3, 3), scale, (True, True))
    assert len(phases) == kernels
    assert sum(phase.weight[0, 0].numel() for phase in phases) == taps


@pytest.mark.parametrize(("shape", "scale"), [((1, 1, 3), 2), ((1, 1, 5, 5), 2), ((1, 1, 3, 3), 1)])
def test_upsample_conv_refuses(shape: tuple[int, ...], scale: int) -> None:
    with pytest.raises(ValueError, match="2 spatial axes of 3 taps"):
        rewrites.upsample_conv_phases(normal(*shape), scale, (True, True))


def test_fold_batch_norm() -> None:
    x, weight, bias = normal(2, 3, 4, 5, 6), normal(7, 3, 3, 3, 3), normal(7)
    gamma, beta, mean, var = normal(7), normal(7), normal(7), normal(7).square() + 0.1
    expected = F.batch_norm(F.conv3d(x, weight, bias, padding=1), mean, var, gamma, beta, eps=1e-5)
    folded = rewrites.fold_batch_norm(weight, bias, gamma, beta, mean, var, 1e-5)
    assert_equal(F.conv3d(x, *folded, padding=1), expected)


def test_fold_spectral_norm_is_pytorchs() -> None:
    conv = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 5, 3)).double().eval()
    x = normal(1, 3, 6, 7)
    weight = rewrites.fold_spectral_norm(conv.weight_orig, conv.weight_u, conv.weight_v)
    assert_equal(F.conv2d(x, weight, conv.bias), conv(x))


@pytest.mark.parametrize("channels", [3, 64])
def test_merge_gamma_beta(channels: int) -> None:
    activations, normalised = normal(2, 4, 5, 6), normal(2, channels, 5, 6)
    gamma_weight, beta_weight = normal(channels, 4, 3, 3), normal(channels, 4, 3, 3)
    gamma_bias, beta_bias = normal(channels), normal(channels)
    gamma, beta = (
        F.conv2d(activations, w, b, padding=1) for w, b in ((gamma_weight, gamma_bias), (beta_weight, beta_bias))
    )
    weight, bias = rewrites.merge_gamma_beta(gamma_weight, gamma_bias, beta_weight, beta_bias)
    scale, shift = rewrites.split_gamma_beta(F.conv2d(activations, weight, bias, padding=1), 1)
    assert_equal(normalised * scale + shift, normalised * (1 + gamma) + beta)


def test_merged_gamma_and_beta_alternate_in_blocks_of_32() -> None:
    channels = torch.arange(64.0)
    _, merged = rewrites.merge_gamma_beta(channels[:, None], channels, channels[:, None], -channels)
    assert torch.equal(merged.unflatten(0, (2, 2, 32))[:, 0].flatten(), channels + 1)
    assert torch.equal(merged.unflatten(0, (2, 2, 32))[:, 1].flatten(), -channels)
    assert torch.equal(rewrites.split_gamma_beta(merged[None], -1)[1], -channels[None])


def test_merge_convs() -> None:
    x, convs = normal(1, 4, 5, 6), [(normal(2, 4, 3, 3), normal(2)), (normal(3, 4, 3, 3), normal(3))]
    expected = torch.cat([F.conv2d(x, *conv, padding=1) for conv in convs], dim=1)
    assert_equal(F.conv2d(x, *rewrites.merge_convs(*convs), padding=1), expected)


def test_merge_shortcut_beta() -> None:
    activations, scaled = normal(2, 4, 5, 6), normal(2, 6, 5, 6)  # scaled: n * (1 + gamma)
    shortcut, beta_weight, beta_bias = normal(3, 6, 1, 1), normal(6, 4, 3, 3), normal(6)
    expected = F.conv2d(scaled + F.conv2d(activations, beta_weight, beta_bias, padding=1), shortcut)
    merged = F.conv2d(activations, *rewrites.merge_shortcut_beta(shortcut, beta_weight, beta_bias), padding=1)
    assert_equal(F.conv2d(scaled, shortcut) + merged, expected)


@pytest.mark.parametrize("width", [1, 3, 9])
def test_fold_kw_into_columns(width: int) -> None:
    x, weight = normal(2, 3, 4, 5, width), normal(6, 3, 7, 7, 7)
    columns = F.conv3d(x, rewrites.fold_kw_into_columns(weight), padding=(3, 3, 0))
    assert columns.shape[1] == 42
    assert_equal(rewrites.sum_shifted_columns(columns, 6), F.conv3d(x, weight, padding=3))


def grid(depth: int, height: int, width: int) -> Tensor:
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=DOUBLE) for n in (depth, height, width)], indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def test_deformation_from_masks() -> None:
    masks, identity = torch.softmax(normal(2, 4, 3, 4, 5), dim=1), grid(3, 4, 5)
    kp_source, kp_driving = normal(2, 3, 3), normal(2, 3, 3)
    motions = torch.stack(
        [identity.expand(2, -1, -1, -1, -1)]
        + [identity - kp_driving[:, k, None, None, None] + kp_source[:, k, None, None, None] for k in range(3)],
        dim=1,
    )
    expected = (masks[..., None] * motions).sum(dim=1)
    assert_equal(rewrites.deformation_from_masks(masks, identity, kp_source, kp_driving), expected)


@pytest.mark.parametrize("reach", [0.3, 3.0])
def test_separable_samples(reach: float) -> None:
    volume, shift = normal(1, 2, 3, 4, 5), reach * normal(1, 3)
    expected = F.grid_sample(volume, grid(3, 4, 5)[None] + shift, align_corners=False)
    actual = volume
    for axis, size in ((4, 5), (3, 4), (2, 3)):
        index, fraction = rewrites.separable_axis_samples(shift[0, 4 - axis], size)
        view = [1] * 5
        view[axis] = size

        def neighbour(
            at: Tensor, weight: Tensor, axis: int = axis, size: int = size, source: Tensor = actual, view: list = view
        ) -> Tensor:
            inside = ((at >= 0) & (at < size)).to(DOUBLE)
            return source.index_select(axis, at.clamp(0, size - 1)) * (weight * inside).view(view)

        actual = neighbour(index, 1 - fraction) + neighbour(index + 1, fraction)
    assert_equal(actual, expected)


def test_separable_gaussian() -> None:
    keypoint = normal(3) / 2
    expected = torch.exp(-0.5 * ((grid(3, 4, 5) - keypoint) ** 2).sum(-1) / 0.01)
    x, y, z = (rewrites.separable_gaussian(keypoint[i], size) for i, size in ((0, 5), (1, 4), (2, 3)))
    assert_equal(z[:, None, None] * y[:, None] * x, expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_classes_of_an_image_enlarged_four_times(size: tuple[int, int]) -> None:
    """Nearest x4 and a conv give 3 values per small pixel and axis, and a second conv needs no more than those."""
    small, first, second = (torch.randn(2, 4, *size), torch.randn(5, 4, 3, 3), torch.randn(6, 5, 3, 3))
    image = F.conv2d(F.interpolate(small.double(), scale_factor=4), first.double(), padding=1)
    classes = image
    for axis in (-2, -1):
        stored = torch.arange(image.shape[axis]).reshape(-1, 4)[:, [0, 1, 3]].flatten()
        classes = classes.index_select(axis, stored)
    assert torch.equal(rewrites.expand_classes(classes), image)
    phases = rewrites.class_conv_phases(second.double())
    assert phases.shape == (16, 6, 5, 3, 3)
    assert sum(int((phases[i].abs().sum((0, 1)) > 0).sum()) for i in range(16)) == 100
    actual = conv_from_classes(classes, phases.flatten(0, 1))
    assert (actual - F.conv2d(image, second.double(), padding=1)).abs().max() < 1e-10
