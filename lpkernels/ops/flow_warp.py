"""flow_warp: softmax over mask logits, deformation, and the trilinear sample of the feature volume, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops._op import Op, native, reference


def _is_channels_last(volume: Tensor) -> bool:
    """Whether ``volume`` (B, C, D, H, W) is a permuted (B, D, H, W, C) with dense voxels; its batch may be expanded."""
    channels, _, height, width = volume.shape[1:]
    voxel = volume.stride(4)
    dense = volume.stride(3) == width * voxel and volume.stride(2) == height * width * voxel
    return volume.stride(1) == 1 and voxel >= channels and dense


def _new_warped(volume: Tensor) -> Tensor:
    """(B, C, D, H, W): a view of (B, H, W, D, C) for a channels-last volume, else contiguous."""
    batch, channels, depth, height, width = volume.shape
    if _is_channels_last(volume):
        return volume.new_empty((batch, height, width, depth, channels)).permute(0, 4, 3, 1, 2)
    return volume.new_empty((batch, channels, depth, height, width))


def _fake(
    mask_logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor, want_deformation: bool = True
) -> tuple[Tensor, Tensor]:
    batch, _, depth, height, width = mask_logits.shape
    shape = (batch, depth, height, width, 3) if want_deformation else (0,)
    return _new_warped(volume), kp_source.new_empty(shape)


def _reference(
    mask_logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor, want_deformation: bool
) -> tuple[Tensor, Tensor]:
    warped, deformation = ref.flow_warp(mask_logits, kp_source, kp_driving, volume, want_deformation)
    return _new_warped(volume).copy_(warped), deformation


_OP = Op(
    "flow_warp(Tensor mask_logits, Tensor kp_source, Tensor kp_driving, Tensor volume, bool want_deformation=True)"
    " -> (Tensor warped, Tensor deformation)",
    _fake,
    (native("flow_warp", "cuda"), native("flow_warp", "cpu"), reference(_reference)),
)


def flow_warp(
    mask_logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor, want_deformation: bool = True
) -> tuple[Tensor, Tensor]:
    """Warp a feature volume by the motion that mask logits select (LivePortrait, section 3.1: the warping module W).

    With m = softmax(mask_logits) over the background (index 0) and K keypoints, and ``identity`` the grid of
    normalised coordinates (-1..1, corners aligned, x right, y down, z in)::

        deformation = identity + sum_k m[k + 1] * (kp_source[k] - kp_driving[k])
        warped      = trilinear sample of volume at deformation (align_corners=False, zeros outside)

    The masks sum to one, so the identity needs no weight and the K + 1 motion grids are never stored.

    Args:
        mask_logits: (B, K + 1, D, H, W), float32 or the dtype of ``volume``; any strides.
        kp_source: (B, K, 3), float32, normalised coordinates.
        kp_driving: (B, K, 3), float32, normalised coordinates.
        volume: (B, C, D, H, W), finite, float32, float16 or bfloat16; any strides, an expanded batch costs no copy.
            Channels last (a permuted (B, D, H, W, C)) is fastest.
        want_deformation: whether to write the deformation.

    Returns:
        warped: (B, C, D, H, W), the dtype of ``volume``; zero where a keypoint is NaN or infinite. Contiguous, but for
            a channels-last volume: then a view of a contiguous (B, H, W, D, C), the pixels (B, H, W, D * C) of the next
            convolution.
        deformation: (B, D, H, W, 3), float32, normalised coordinates; empty, (0,), if it is not wanted.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape does not fit, D, H or W is below 2, or devices differ.
        BackendError: no allowed backend can run on this device.
        RuntimeError: an input requires a gradient; there is none (``lpkernels.ref.flow_warp`` has one).
    """
    _checks.is_tensor("mask_logits", mask_logits)
    _checks.is_tensor("kp_source", kp_source)
    _checks.is_tensor("kp_driving", kp_driving)
    _checks.is_tensor("volume", volume)
    _checks.shape("mask_logits", mask_logits, ("B", "K + 1", "D", "H", "W"))
    batch, masks, depth, height, width = mask_logits.shape
    if masks < 2 or min(depth, height, width) < 2:
        raise ValueError(
            f"mask_logits must have at least 2 masks and D, H, W of at least 2, got {tuple(mask_logits.shape)}"
        )
    _checks.shape("kp_source", kp_source, (batch, masks - 1, 3))
    _checks.shape("kp_driving", kp_driving, (batch, masks - 1, 3))
    _checks.shape("volume", volume, (batch, "C", depth, height, width))
    _checks.dtype("volume", volume)
    _checks.dtype("mask_logits", mask_logits, sorted({torch.float32, volume.dtype}, key=str))
    _checks.dtype("kp_source", kp_source, (torch.float32,))
    _checks.same_dtype("kp_source", kp_source, kp_driving=kp_driving)
    _checks.same_device("volume", volume, mask_logits=mask_logits, kp_source=kp_source, kp_driving=kp_driving)
    return _OP(mask_logits, kp_source.contiguous(), kp_driving.contiguous(), volume, bool(want_deformation))
