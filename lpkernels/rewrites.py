"""Exact rewrites of the networks as functions on their weights: fewer multiplications, the same answer.

None approximates: ``tests/test_rewrites.py`` holds each against the original form in float64 at 1e-10. Weights come and
go in PyTorch's layout (out, in, kernel...), 2D or 3D alike unless a function says otherwise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

GAMMA_BETA_BLOCK = 32


@dataclass(frozen=True)
class Phase:
    """One sub-pixel convolution of ``upsample_conv_phases``.

    ``residues`` holds, per upsampled axis, the positions r in 0..scale-1 of the large pixels it answers for (all of
    them alike); ``first`` the offset of the kernel's first tap from the small pixel, -1 or 0 per axis; ``weight`` the
    kernel (out, in, taps...), where an axis that is not upsampled keeps its three taps, the first at -1.
    """

    residues: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    weight: Tensor


def upsample_conv_phases(weight: Tensor, scale: int, upsampled: tuple[bool, ...]) -> list[Phase]:
    """Nearest upsampling by ``scale``, then a conv of three taps an axis with padding 1, as convs on the small grid.

    Large pixel ``scale * i + r`` reads large pixels r - 1, r, r + 1, which are small pixels i + floor((r + t) / scale):
    neighbouring taps that hit the same small pixel are summed. Per axis that leaves kernels of two taps for the first
    and last r and of one tap for all between: 4 products instead of 9 for scale 2 in 2D, 25 instead of 144 for scale 4.
    Zero padding stays zero padding: beyond the small image lies exactly what lay beyond the large one.

    Args:
        weight: (out, in, 3, ...), one spatial axis per entry of ``upsampled``.
        scale: the factor, at least 2.
        upsampled: which spatial axes are enlarged; the hourglass enlarges (h, w) of (d, h, w).
    """
    if tuple(weight.shape[2:]) != (3,) * len(upsampled) or scale < 2:
        raise ValueError(
            f"weight must have {len(upsampled)} spatial axes of 3 taps and scale be at least 2, "
            f"got {tuple(weight.shape)} and {scale}"
        )
    per_axis = [_axis_phases(scale) if enlarged else [((0,), (-1, 0, 1))] for enlarged in upsampled]
    phases = []
    for combination in itertools.product(*per_axis):
        kernel = weight
        for axis, (_, offsets) in enumerate(combination, start=2):
            kernel = _sum_taps(kernel, axis, offsets)
        residues = tuple(residues for residues, _ in combination)
        phases.append(Phase(residues, tuple(min(offsets) for _, offsets in combination), kernel.contiguous()))
    return phases


def upsample_conv_products(weight: Tensor) -> Tensor:
    """The same convolution in h and w as products that the phases share: 9 instead of the 16 or 25 of all phases.

    Along an axis, with d[i] = x[i] - x[i - 1], the large pixels made of small pixel i are ::

        first = (w0 + w1 + w2) x[i] - w0 d[i],   last = (w0 + w1 + w2) x[i] + w2 d[i + 1]

    and all between (scale 4) the shared product alone. In h and w every large pixel is a sum of products of differences
    in both: nine kernels without taps, whatever the scale. ``upsample_conv_phases`` has each phase by itself.

    Args:
        weight: (O, C, [3,] 3, 3).

    Returns:
        (3, 3, O, C[, 3]): for x[i - 1] - x[i], for x[i], for x[i + 1] - x[i] along h; likewise along w.
    """

    def last_axis(taps: Tensor) -> Tensor:
        return torch.stack([taps[..., 0], taps.sum(-1), taps[..., 2]])

    return last_axis(last_axis(weight))


def phases_of_products(products: Tensor, scale: int) -> Tensor:
    """What ``upsample_conv_products`` answers, channels last, as the kernels of 2 x 2 taps of each phase.

    Args:
        products: (3, 3, O, ..., C).
        scale: 2 or 4.

    Returns:
        (P, O, ..., 2, 2, C), P = 4 or 9, as ``ops.pack_upsample_weight`` lays them out.
    """

    def first_axis(products: Tensor) -> Tensor:
        """(3, ...) -> (phases, 2 taps, ...)."""
        left, inner, right = products.unbind()
        phases = [(left, inner - left), (torch.zeros_like(inner), inner), (inner - right, right)]
        return torch.stack([torch.stack(taps) for taps in (phases if scale == 4 else phases[::2])])

    rows = first_axis(products)
    return first_axis(rows.movedim(2, 0)).movedim((2, 0, 3, 1), (0, 1, -3, -2)).flatten(0, 1)


# Along an axis of seven taps: the half sums and half differences of two neighbouring rows of y take the first four
# kernels, the rows themselves the taps after them.
_ROW_PAIRS = [
    [0.5, 0.5, 0.5, 0, 0, 0, 0],
    [0.5, -0.5, 0.5, 0, 0, 0, 0],
    [0, 0, 0, 0.5, 0.5, 0.5, 0],
    [0, 0, 0, 0.5, -0.5, 0.5, 0],
    *[[float(tap == only) for tap in range(7)] for only in (0, 2, 3, 5, 6)],
]


def row_pair_kernels(weight: Tensor, axis: int) -> Tensor:
    """A convolution of seven taps along an axis as 10 products for two neighbouring rows of y instead of 14.

    Rows r and r + 1 of y see rows u0 .. u7 of x. With kernels k0 .. k3 and the taps w (Winograd's F(2, 3), twice) ::

        s    = (u1 + u2) k0 + (u4 + u5) k2             d        = (u2 - u1) k1 + (u5 - u4) k3
        y[r] = s + d + (u0 - u2) w0 + (u3 - u5) w3 + u6 w6
        y[r + 1] = s - d + (u3 - u1) w2 + (u6 - u4) w5 + u7 w6

    Args:
        weight: (..., 7, ...), the taps at ``axis``.

    Returns:
        (..., 9, ...): (w0 + w1 + w2)/2, (w0 - w1 + w2)/2, the same of w3, w4, w5, and w0, w2, w3, w5, w6.
    """
    return torch.tensordot(weight, weight.new_tensor(_ROW_PAIRS), dims=([axis], [1])).movedim(-1, axis)


def taps_of_row_pairs(kernels: Tensor, axis: int) -> Tensor:
    """What ``row_pair_kernels`` was made of: (..., 9, ...) -> (..., 7, ...)."""
    k = kernels.unbind(axis)
    return torch.stack([k[4], k[0] - k[1], k[5], k[6], k[2] - k[3], k[7], k[8]], axis)


def winograd_kernels(weight: Tensor, axis: int) -> Tensor:
    """A convolution of three taps along an axis as 4 products for two neighbouring rows of y instead of 6.

    Rows r and r + 1 of y see rows u0 .. u3 of x. With the half sum s and half difference d of the two, and the taps w
    (Lavin and Gray 2016, F(2, 3)) ::

        s    = (u1 + u2) (w0 + w1 + w2)/2      d        = (u2 - u1) (w0 - w1 + w2)/2
        y[r] = s + d + (u0 - u2) w0            y[r + 1] = s - d + (u3 - u1) w2

    Args:
        weight: (..., 3, ...), the taps at ``axis``.

    Returns:
        (..., 4, ...): (w0 + w1 + w2)/2, (w0 - w1 + w2)/2, w0, w2.
    """
    first, middle, last = weight.unbind(axis)
    outer = 0.5 * (first + last)
    return torch.stack([outer + 0.5 * middle, outer - 0.5 * middle, first, last], axis)


def taps_of_winograd(kernels: Tensor, axis: int) -> Tensor:
    """What ``winograd_kernels`` was made of: (..., 4, ...) -> (..., 3, ...)."""
    half_sum, half_difference, first, last = kernels.unbind(axis)
    return torch.stack([first, half_sum - half_difference, last], axis)


# An image enlarged 4 times (nearest) and convolved with 3x3 taps takes 3 values per small pixel and axis: one for its
# first, one for its two inner and one for its last row. Stored so, 3 x 3 for each small pixel, it is a grid of classes;
# CLASS_OF_ROW says which class each of the 4 rows is.
CLASSES = 3
CLASS_OF_ROW = (0, 1, 1, 2)


def expand_classes(classes: Tensor) -> Tensor:
    """A grid of classes (B, C, 3h, 3w) as the image (B, C, 4h, 4w) that it stands for."""
    for axis in (-2, -1):
        rows = classes.movedim(axis, -1).unflatten(-1, (-1, CLASSES)).unbind(-1)
        classes = torch.stack([rows[row] for row in CLASS_OF_ROW], -1).flatten(-2).movedim(-1, axis)
    return classes


def class_conv_phases(weight: Tensor) -> Tensor:
    """A conv3x3 with padding 1 of an image that is given as its classes, as convs on the grid of classes.

    Row 4 i + r of the image reads rows of class ``CLASS_OF_ROW``; of its three taps two hit the same class for r = 1
    and 2 and are summed: 10 taps for 4 rows instead of 12, 100 products instead of 144 in 2D. Along an axis phase r
    reads ``class_taps(r)``.

    Args:
        weight: (out, in, 3, 3).

    Returns:
        (16, out, in, 3, 3): the kernel of phase 4 r + q, its taps first, zeros after them.
    """
    sums = weight.new_zeros(len(CLASS_OF_ROW), 3, 3)  # phase, tap of the weight, tap on the grid
    for r in range(len(CLASS_OF_ROW)):
        first, _ = class_taps(r)
        for tap in range(3):
            pixel, row = divmod(r + tap - 1, len(CLASS_OF_ROW))
            sums[r, tap, CLASSES * pixel + CLASS_OF_ROW[row] - first] = 1
    phases = torch.einsum("oiyx,ryY,qxX->rqoiYX", weight, sums, sums)
    return phases.flatten(0, 1).contiguous()


def class_taps(phase: int) -> tuple[int, int]:
    """(first, count): a phase's taps along an axis, classes 3 i + first and the following ones."""
    return ((-1, 3), (0, 2), (1, 2), (1, 3))[phase]


def _axis_phases(scale: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Distinct phases of one axis: residues r that share taps, and the small offset each of the three taps hits."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for r in range(scale):
        offsets = tuple((r + tap) // scale for tap in (-1, 0, 1))
        groups.setdefault(offsets, []).append(r)
    return [(tuple(residues), offsets) for offsets, residues in groups.items()]


def _sum_taps(weight: Tensor, axis: int, offsets: tuple[int, ...]) -> Tensor:
    first = min(offsets)
    out = torch.zeros_like(weight.narrow(axis, 0, max(offsets) - first + 1))
    index = torch.tensor([offset - first for offset in offsets], device=weight.device)
    return out.index_add(axis, index, weight)


def fold_batch_norm(
    weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """BatchNorm after a conv, folded into it: weight s and (bias - mean) s + beta, with s = gamma / sqrt(var + eps)."""
    scale = gamma / torch.sqrt(var + eps)
    return weight * _per_output(scale, weight), (bias - mean) * scale + beta


def fold_spectral_norm(weight_orig: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Spectral norm in inference as a weight: weight_orig / (u . (W v)), W the weight as a matrix (out, rest)."""
    return weight_orig / torch.dot(u, torch.mv(weight_orig.flatten(1), v))


def merge_gamma_beta(
    gamma_weight: Tensor, gamma_bias: Tensor, beta_weight: Tensor, beta_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """SPADE's two convs as one: gamma + 1 of 32 channels, beta of the same 32, the next 32 gammas, ...

    The 1 of ``n * (1 + gamma) + beta`` goes into gamma's bias. Blocks keep a channel's gamma and beta in one tile of a
    matrix product, and neighbouring channels next to each other. Where the channels are no multiple of 32 there is one
    block of them all. ``split_gamma_beta`` takes the answer apart.
    """
    block = gamma_beta_block(gamma_weight.shape[0])

    def merge(gamma: Tensor, beta: Tensor) -> Tensor:
        return torch.stack([gamma.unflatten(0, (-1, block)), beta.unflatten(0, (-1, block))], dim=1).flatten(0, 2)

    return merge(gamma_weight, beta_weight), merge(gamma_bias + 1, beta_bias)


def split_gamma_beta(merged: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """gamma + 1 and beta out of what a conv of ``merge_gamma_beta`` answers (or its rows), channels along ``dim``."""
    blocks = merged.unflatten(dim, (-1, 2, gamma_beta_block(merged.shape[dim] // 2)))
    dim %= merged.dim()
    return blocks.select(dim + 1, 0).flatten(dim, dim + 1), blocks.select(dim + 1, 1).flatten(dim, dim + 1)


def gamma_beta_block(channels: int) -> int:
    """How many gammas, then betas, stand next to each other in ``merge_gamma_beta``."""
    return GAMMA_BETA_BLOCK if channels % GAMMA_BETA_BLOCK == 0 else channels


def merge_convs(*convs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Convs (weight, bias) that read the same input as one conv with their outputs side by side."""
    weights, biases = zip(*convs, strict=True)
    return torch.cat(weights), torch.cat(biases)


def merge_shortcut_beta(shortcut: Tensor, beta_weight: Tensor, beta_bias: Tensor) -> tuple[Tensor, Tensor]:
    """A 1x1 conv without bias after SPADE's beta conv as one conv: no nonlinearity stands between them.

    ``conv_s(n (1 + gamma) + beta) = conv_s(n (1 + gamma)) + merged(activations)``: beta of the shortcut's SPADE never
    needs its own channels (up_0: 128 -> 512 -> 256 becomes 128 -> 256).
    """
    matrix = shortcut.flatten(1)  # (out, channels)
    weight = torch.einsum("oc,c...->o...", matrix, beta_weight)
    return weight, matrix @ beta_bias


def fold_kw_into_columns(weight: Tensor) -> Tensor:
    """A conv (O, I, kd, kh, kw) as one (kw * O, I, kd, kh, 1): column kw * O + o holds tap kw of output o.

    Its answer P has kw * O channels; ``sum_shifted_columns`` adds them up along W. The mask head gets 154 columns for
    22 outputs, which fill a matrix tile.
    """
    return weight.permute(4, 0, 1, 2, 3).flatten(0, 1).unsqueeze(-1)


def sum_shifted_columns(columns: Tensor, outputs: int) -> Tensor:
    """Second half of ``fold_kw_into_columns``: out[..., w] = sum_k P[k][..., w + k - kw // 2], zero beyond the edges.

    Args:
        columns: P, (B, kw * outputs, D, H, W).
        outputs: channels of the original conv.
    """
    taps = columns.unflatten(1, (-1, outputs))
    kw, width = taps.shape[1], taps.shape[-1]
    padded = torch.nn.functional.pad(taps, (kw // 2, kw // 2))
    return torch.stack([padded[:, k, ..., k : k + width] for k in range(kw)]).sum(0)


def deformation_from_masks(masks: Tensor, identity: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
    """identity + sum_k masks[k + 1] (kp_source[k] - kp_driving[k]): what the mask-weighted sum of K + 1 motions is.

    Args:
        masks: (B, K + 1, D, H, W), summing to one over K + 1, the background first.
        identity: (D, H, W, 3), normalised coordinates.
        kp_source, kp_driving: (B, K, 3).
    """
    return identity + torch.einsum("bkdhw,bkc->bdhwc", masks[:, 1:], kp_source - kp_driving)


def separable_axis_samples(shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Positions and weights of a translated grid's samples along one axis; a sample is the product of three axes.

    A keypoint's motion is one translation, so coordinate 2 i / (size - 1) - 1 + shift (corners aligned) samples voxel
    ((x + 1) size - 1) / 2 (not aligned) whatever the other two axes do.

    Args:
        shift: (...), normalised, kp_source - kp_driving along this axis.

    Returns:
        index: (..., size) int64, the lower of the two neighbours; beyond -1..size - 1 nothing is inside.
        fraction: (..., size), the weight of neighbour index + 1; index has 1 - fraction. Neighbours outside count zero.
    """
    grid = torch.linspace(-1, 1, size, dtype=shift.dtype, device=shift.device)
    position = ((grid + shift[..., None] + 1) * size - 1) / 2
    lower = position.floor()
    return lower.long(), position - lower


def separable_gaussian(keypoint: Tensor, size: int, variance: float = 0.01) -> Tensor:
    """exp(-(x - keypoint)^2 / (2 variance)) along one axis, (..., size); a 3D Gaussian is the product of three."""
    grid = torch.linspace(-1, 1, size, dtype=keypoint.dtype, device=keypoint.device)
    return torch.exp(-0.5 * (grid - keypoint[..., None]) ** 2 / variance)


def _per_output(values: Tensor, weight: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (weight.dim() - 1))
