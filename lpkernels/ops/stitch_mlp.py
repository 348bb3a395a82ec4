"""stitch_mlp: the stitching or a retargeting MLP with the update of the keypoints around it, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops._op import Op, native, reference
from lpkernels.ops.keypoint_transform import dense_rows

MAX_LAYERS, MAX_WIDTH, MAX_RATIOS = 8, 512, 4
OUTPUT_MULTIPLE = 4


def pack_mlp(layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[int]]:
    """Linear layers as ``stitch_mlp`` takes them: flat float32 weights, and the sizes from input to output.

    Layer after layer: the matrix transposed, a row of outputs for each input, then the bias as one more row; rows are
    zero-padded to a multiple of 4 outputs, so that a thread reads four of them at once.

    Args:
        layers: weight (outputs, inputs) and bias (outputs,) of each, floating point.

    Raises:
        ValueError: no layer, or shapes that do not follow each other.
    """
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    sizes, flat = [layers[0][0].shape[1]], []
    for weight, bias in layers:
        _checks.shape("weight", weight, ("outputs", sizes[-1]))
        _checks.shape("bias", bias, (weight.shape[0],))
        rows = torch.cat([weight.detach().float().T, bias.detach().float()[None]])
        flat.append(torch.nn.functional.pad(rows, (0, -rows.shape[1] % OUTPUT_MULTIPLE)).flatten())
        sizes.append(weight.shape[0])
    return torch.cat(flat), sizes


def packed_mlp_size(sizes: Sequence[int]) -> int:
    """Values in the packed weights of an MLP of these sizes."""
    return sum((inputs + 1) * (outputs + -outputs % OUTPUT_MULTIPLE) for inputs, outputs in pairwise(sizes))


def _fake(x_s: Tensor, x_d: Tensor, *_: object) -> Tensor:
    return x_d.new_empty(tuple(x_d.shape))


_OP = Op(
    "stitch_mlp(Tensor x_s, Tensor x_d, Tensor weights, int[] sizes, float[] ratios, Tensor? ratio, float multiplier)"
    " -> Tensor x_new",
    _fake,
    (native("stitch_mlp", "cuda"), native("stitch_mlp", "cpu"), reference(ref.stitch_mlp)),
)


def stitch_mlp(
    x_s: Tensor,
    x_d: Tensor,
    weights: Tensor,
    sizes: Sequence[int],
    ratios: Sequence[float] = (),
    ratio: Tensor | None = None,
    multiplier: float = 1.0,
) -> Tensor:
    """Driving keypoints corrected by one of S's MLPs (LivePortrait, section 3.3)::

        features = [x_s, x_d]                        stitching: no ratio is given
        features = [x_s, ratios..., ratio]           eye and lip retargeting
        delta    = MLP(features), ReLU between its linear layers
        x        = x_d + delta[:3K], then x += delta[3K] and y += delta[3K + 1] where the MLP has 3K + 2 outputs
        x_new    = x_s + (x - x_s) * multiplier

    Args:
        x_s: the source's keypoints, (1 or B, K, 3) float32, normalised coordinates.
        x_d: the keypoints to correct, (B, K, 3) float32; an expanded batch costs no copy.
        weights: flat float32, made by ``pack_mlp``.
        sizes: of the input, the hidden layers and the output, as ``pack_mlp`` gives them; at most 8 layers of 512.
        ratios: up to 4 openings known on the host, the source's first.
        ratio: the wanted opening where it lies on the device, (1 or B, 1) float32; the last feature.
        multiplier: strength of the whole motion; for the last of a row of MLPs.

    Returns:
        x_new, (B, K, 3) float32, normalised coordinates.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape does not fit, an MLP of other sizes, or devices differ.
        BackendError: no allowed backend can run on this device.
        RuntimeError: an input requires a gradient, or ``weights`` is a view that does not start at 16 bytes.
    """
    _checks.shape("x_d", _checks.is_tensor("x_d", x_d), ("B", "K", 3))
    batch, keypoints, device = *x_d.shape[:2], x_d.device
    x_d = dense_rows("x_d", x_d, batch, device)
    x_s = dense_rows("x_s", x_s, batch, device, keypoints, 3)
    ratio = None if ratio is None else dense_rows("ratio", ratio, batch, device, 1)
    sizes, ratios = list(sizes), [float(value) for value in ratios]
    if len(ratios) > MAX_RATIOS:
        raise ValueError(f"ratios must be at most {MAX_RATIOS}, got {len(ratios)}")
    _check_sizes(sizes, keypoints, len(ratios) + (ratio is not None))
    _checks.is_tensor("weights", weights)
    _checks.dtype("weights", weights, (torch.float32,))
    _checks.shape("weights", weights, (packed_mlp_size(sizes),))
    _checks.same_device("x_d", x_d, weights=weights)
    x_new: Tensor = _OP(x_s, x_d, weights.contiguous(), sizes, ratios, ratio, float(multiplier))
    return x_new


def _check_sizes(sizes: Sequence[int], keypoints: int, ratios: int) -> None:
    coordinates = 3 * keypoints
    inputs = coordinates + (ratios or coordinates)
    if not 2 <= len(sizes) <= MAX_LAYERS + 1 or not all(1 <= size <= MAX_WIDTH for size in sizes):
        raise ValueError(f"sizes must name 1 to {MAX_LAYERS} layers of 1 to {MAX_WIDTH} outputs, got {list(sizes)}")
    if sizes[0] != inputs or sizes[-1] not in (coordinates, coordinates + 2):
        raise ValueError(
            f"sizes must lead from {inputs} to {coordinates} or {coordinates + 2} for {keypoints} keypoints"
            f" and {ratios} ratios, got {list(sizes)}"
        )
