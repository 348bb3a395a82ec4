"""sparse_motion: what the dense motion network's hourglass reads, every keypoint's heatmap and sample, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops import _conv
from lpkernels.ops._op import Op, native, reference
from lpkernels.ops.mask_conv3d import padded_channels


def background_sample(compressed: Tensor) -> Tensor:
    """The compressed volume as the background's motion samples it: corners aligned in the grid, not in the sample.

    It depends on the source alone: made once per source, in PyTorch, and given to every ``sparse_motion``.

    Args:
        compressed: (B, D, H, W, C), channels-last, float16, bfloat16 or float32; D, H, W at least 2.

    Returns:
        The same shape and dtype, contiguous.

    Raises:
        TypeError: no tensor, or another dtype.
        ValueError: another shape, or not channels-last.
    """
    _check_compressed(compressed)
    return ref.background_sample(compressed)


def _fake(compressed: Tensor, background: Tensor, kp_source: Tensor, kp_driving: Tensor, out: Tensor) -> None:
    return None


def _reference(compressed: Tensor, background: Tensor, kp_source: Tensor, kp_driving: Tensor, out: Tensor) -> None:
    made = ref.sparse_motion(compressed, background, kp_source, kp_driving)
    out[..., : made.shape[-1]].copy_(made)
    out[..., made.shape[-1] :].zero_()


_OP = Op(
    "sparse_motion(Tensor compressed, Tensor background, Tensor kp_source, Tensor kp_driving, Tensor(a!) out) -> ()",
    _fake,
    (native("sparse_motion", "cuda"), native("sparse_motion", "cpu"), reference(_reference)),
)


def sparse_motion(
    compressed: Tensor, background: Tensor, kp_source: Tensor, kp_driving: Tensor, out: Tensor | None = None
) -> Tensor:
    """Heatmap and sample of every motion (LivePortrait's dense motion network, before its hourglass).

    Motion m of K + 1 has channels m * (C + 1) and the C after it; m = 0 is the background, m = k + 1 keypoint k. With
    ``identity`` the grid of normalised coordinates (-1..1, corners aligned, x right, y down, z in)::

        gaussian(kp)    = exp(-|identity - kp|^2 / (2 * 0.01))
        heatmap[k + 1]  = gaussian(kp_driving[k]) - gaussian(kp_source[k])
        sample[k + 1]   = trilinear sample of compressed at identity - kp_driving[k] + kp_source[k]
                          (align_corners=False, zeros outside)
        heatmap[0], sample[0] = 0, background

    A keypoint's motion is one translation, so neighbours, weights and Gaussians are products of three axes'
    (``lpkernels.rewrites.separable_axis_samples``, ``separable_gaussian``): no grid is stored.

    Args:
        compressed: (1 or B, D, H, W, C), channels-last (slices of a wider buffer too), finite, float16, bfloat16 or
            float32; D, H, W at least 2. A batch of 1 serves all B.
        background: its ``background_sample``: same shape and dtype.
        kp_source: (B, K, 3), float32, normalised coordinates.
        kp_driving: (B, K, 3), float32, normalised coordinates.
        out: (B, D, H, W, N), N at least (K + 1) * (C + 1), channels-last, the dtype of ``compressed``; channels beyond
            are set to zero. Made with the next multiple of 16 channels if it is None.

    Returns:
        ``out``. A keypoint that is NaN or infinite gives zeros or NaN in its own channels alone.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or layout does not fit, devices differ, or ``out`` overlaps an input.
        BackendError: no allowed backend can run on this device.
        RuntimeError: an input requires a gradient.
    """
    _check_compressed(compressed)
    _conv.channels_last("background", _checks.is_tensor("background", background), tuple(compressed.shape))
    _checks.shape("kp_source", _checks.is_tensor("kp_source", kp_source), ("B", "K", 3))
    batch, keypoints = kp_source.shape[:2]
    _checks.shape("kp_driving", _checks.is_tensor("kp_driving", kp_driving), (batch, keypoints, 3))
    if compressed.shape[0] not in (1, batch):
        raise ValueError(f"compressed must have batch 1 or {batch} like kp_source, got {tuple(compressed.shape)}")
    _checks.same_dtype("compressed", compressed, background=background)
    _checks.dtype("kp_source", kp_source, (torch.float32,))
    _checks.same_dtype("kp_source", kp_source, kp_driving=kp_driving)
    _checks.same_device("compressed", compressed, background=background, kp_source=kp_source, kp_driving=kp_driving)
    used = (keypoints + 1) * (compressed.shape[4] + 1)
    if out is None:
        out = compressed.new_empty((batch, *compressed.shape[1:4], padded_channels(used)))
    else:
        _check_out(out, compressed, background, batch, used)
    _OP(compressed, background, kp_source.contiguous(), kp_driving.contiguous(), out)
    return out


def _check_compressed(compressed: object) -> None:
    checked = _conv.activation("compressed", compressed, 5)
    if min(checked.shape[1:4]) < 2:
        raise ValueError(f"compressed must have D, H, W of at least 2, got {tuple(checked.shape)}")


def _check_out(out: object, compressed: Tensor, background: Tensor, batch: int, used: int) -> None:
    checked = _checks.is_tensor("out", out)
    _conv.channels_last("out", checked, (batch, *compressed.shape[1:4], "N"))
    if checked.shape[4] < used:
        raise ValueError(f"out must have at least (K + 1) * (C + 1) = {used} channels, got {tuple(checked.shape)}")
    _checks.same_dtype("compressed", compressed, out=checked)
    _checks.same_device("compressed", compressed, out=checked)
    _conv.no_overlap("out", checked, compressed=compressed, background=background)
