"""keypoint_transform: from the motion extractor's raw heads to the source's driving keypoints, before stitching."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernels import _checks, ref
from lpkernels.ops._op import Op, native, reference

POSE_BINS = 66
_ROTATION, _TRANSLATION, _SCALE = 9, 3, 1


def pack_motion(exp: Tensor, R: Tensor, t: Tensor, scale: Tensor) -> Tensor:
    """A motion as rows: exp (B, K, 3), R (B, 3, 3), t (B, 3), scale (B, 1) -> (B, 3K + 13), in this order."""
    return torch.cat([exp.flatten(1), R.flatten(1), t, scale], dim=1)


def unpack_motion(motion: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp (B, K, 3), R (B, 3, 3), t (B, 3), scale (B, 1) as views of a packed motion (B, 3K + 13)."""
    exp, R, t, scale = motion.split([motion.shape[1] - motion_size(0), _ROTATION, _TRANSLATION, _SCALE], dim=1)
    return exp.unflatten(1, (-1, 3)), R.unflatten(1, (3, 3)), t, scale


def motion_size(keypoints: int) -> int:
    """Values in a packed motion."""
    return 3 * keypoints + _ROTATION + _TRANSLATION + _SCALE


def heads_size(keypoints: int, bins: int = POSE_BINS) -> int:
    """Values in a row of heads: pitch, yaw, roll (bins each), t (3), exp (3K), scale (1), kp (3K)."""
    return 3 * bins + 6 * keypoints + _TRANSLATION + _SCALE


def _fake(driving: Tensor, kp: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    batch, keypoints = driving.shape[0], kp.shape[1]
    return driving.new_empty((batch, keypoints, 3)), driving.new_empty((batch, motion_size(keypoints)))


_OP = Op(
    "keypoint_transform(Tensor driving, Tensor kp, Tensor x_s, Tensor source, Tensor? first, Tensor? taken,"
    " Tensor? multiplier, int bins, bool relative, bool pose, bool scale, float driving_multiplier)"
    " -> (Tensor x_d, Tensor motion)",
    _fake,
    (native("keypoint_transform", "cuda"), native("keypoint_transform", "cpu"), reference(ref.keypoint_transform)),
)


def keypoint_transform(
    driving: Tensor,
    kp: Tensor,
    x_s: Tensor,
    source: Tensor,
    first: Tensor | None = None,
    taken: Tensor | None = None,
    multiplier: Tensor | None = None,
    bins: int = POSE_BINS,
    relative: bool = True,
    pose: bool = True,
    scale: bool = True,
    driving_multiplier: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The source's keypoints under a driving motion (LivePortrait, Eqn. 2 and algorithm 1), without the MLPs.

    With index 0 the first driving frame, s the source, and R, exp, t, scale what the heads mean::

        degrees  = 3 * sum_i(i * softmax(bins)_i) - 97.5         R = (Rz(roll) Ry(yaw) Rx(pitch))^T
        relative: R' = (R R_0^T) R_s,  scale' = scale_s scale / scale_0,  exp' = exp_s + exp - exp_0,  t' likewise
        absolute: R' = R,  scale' = scale_s,  exp' = exp,  t' = t
        x        = scale' * (kp @ R' + exp') + t'                t' moves x and y only
        x_d      = x, or x_s + (x - x_0) * multiplier            x_0: the same of the first frame
        x_d      = x_s + (x_d - x_s) * driving_multiplier

    Args:
        driving: heads (B, 6K + 3 bins + 4) float32, side by side in the order of ``ConvNeXtV2.HEADS`` (their canonical
            keypoints are not read), or with ``bins=0`` packed motions (B, 3K + 13). Rows may lie apart.
        kp: the source's canonical keypoints, (1 or B, K, 3) float32.
        x_s: the source's keypoints, (1 or B, K, 3) float32, normalised coordinates.
        source: the source's packed motion, (1 or B, 3K + 13) float32.
        first: the first driving frame's packed motion, (1 or B, 3K + 13) float32; None: each row's own. Unused in
            absolute motion.
        taken: (K, 3) bool, the coordinates of exp that come from the driving motion; None: all. The others are the
            source's.
        multiplier: of expression-friendly motion: (1 or B,) float32, or more dimensions of size one; None: none.
        bins: bins of an angle.
        relative: add the driving motion's change since the first frame to the source's motion.
        pose: rotation and translation follow the driving motion; else they stay the source's.
        scale: so does the scale, in relative motion.
        driving_multiplier: strength of the whole motion; for a caller whose last step this is.

    Returns:
        x_d: (B, K, 3) float32, normalised coordinates.
        motion: the driving motion, packed, (B, 3K + 13) float32.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape does not fit or devices differ.
        BackendError: no allowed backend can run on this device.
        RuntimeError: an input requires a gradient.
    """
    if bins < 0:
        raise ValueError(f"bins must be 0 or more, got {bins}")
    _checks.shape("kp", _checks.is_tensor("kp", kp), ("1 or B", "K", 3))
    keypoints = kp.shape[1]
    size = motion_size(keypoints)
    _checks.shape(
        "driving", _checks.is_tensor("driving", driving), ("B", heads_size(keypoints, bins) if bins else size)
    )
    batch, device = driving.shape[0], driving.device
    driving = dense_rows("driving", driving, batch, device)
    kp, x_s = (dense_rows(name, value, batch, device, keypoints, 3) for name, value in (("kp", kp), ("x_s", x_s)))
    source = dense_rows("source", source, batch, device, size)
    first = None if first is None else dense_rows("first", first, batch, device, size)
    if multiplier is not None:
        multiplier = _checks.is_tensor("multiplier", multiplier).reshape(-1)
        multiplier = dense_rows("multiplier", multiplier, batch, device)
    if taken is not None:
        _checks.shape("taken", _checks.is_tensor("taken", taken), (keypoints, 3))
        _checks.dtype("taken", taken, (torch.bool,))
        _checks.same_device("driving", driving, taken=taken)
        taken = taken.contiguous()
    options = (bins, relative, pose, scale, driving_multiplier)
    outputs: tuple[Tensor, Tensor] = _OP(driving, kp, x_s, source, first, taken, multiplier, *options)
    return outputs


def dense_rows(name: str, value: Tensor, batch: int, device: torch.device, *sizes: int) -> Tensor:
    """``value`` with each row dense, checked: float32 of shape (1 or batch, sizes...) on the driving motion's device.

    With no ``sizes`` the rows' own are taken. An expanded batch costs no copy.
    """
    _checks.is_tensor(name, value)
    rows = 1 if value.dim() > 0 and value.shape[0] == 1 else batch
    _checks.shape(name, value, (rows, *(sizes or value.shape[1:])))
    _checks.dtype(name, value, (torch.float32,))
    if value.device != device:
        raise ValueError(f"{name} must be on the device of the driving motion, {device}; got {value.device}")
    dense = 1
    for size, stride in zip(reversed(value.shape[1:]), reversed(value.stride()[1:]), strict=True):
        if stride != dense and size > 1:
            return value.contiguous()
        dense *= size
    return value
