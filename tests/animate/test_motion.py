"""Motion maths against SciPy's rotations, against loops, and against the golden files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lpkernels.animate.motion import (
    POSE_BINS,
    Motion,
    headpose_to_degrees,
    refine_motion,
    rotation_matrix,
    source_keypoints,
    transform_keypoints,
)
from tests.animate.motions import random_motion

GOLDEN = Path(__file__).parents[1] / "golden"
angles = st.floats(-180, 180)


def test_certain_bin_is_its_angle() -> None:
    bins = 1000 * torch.eye(POSE_BINS)
    degrees = headpose_to_degrees(bins)
    assert degrees.shape == (POSE_BINS, 1)
    torch.testing.assert_close(degrees[:, 0], torch.arange(66) * 3 - 97.5)


def test_undecided_bins_are_zero_degrees() -> None:
    torch.testing.assert_close(headpose_to_degrees(torch.full((2, 66), 7.0)), torch.zeros(2, 1), atol=1e-4, rtol=0)


@given(angles, angles, angles)
def test_rotation_matches_scipy(pitch: float, yaw: float, roll: float) -> None:
    R = rotation_matrix(*(torch.tensor([[angle]], dtype=torch.float64) for angle in (pitch, yaw, roll)))
    about_x, about_y, about_z = (
        Rotation.from_euler(axis, angle, degrees=True) for axis, angle in zip("xyz", (pitch, yaw, roll), strict=True)
    )
    expected = (about_z * about_y * about_x).as_matrix().T
    np.testing.assert_allclose(R[0].numpy(), expected, atol=1e-14)


def test_rotation_turns_row_vectors() -> None:
    zero = torch.zeros(1, 1)
    nose = torch.tensor([[0.0, 0.0, 1.0]])
    turned = nose @ rotation_matrix(zero, torch.full((1, 1), 90.0), zero)[0]
    torch.testing.assert_close(turned, torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-6, rtol=0)


@given(batch=st.integers(1, 4), num_kp=st.integers(1, 30), seed=st.integers(0, 10))
def test_keypoints_match_the_equation(batch: int, num_kp: int, seed: int) -> None:
    motion = random_motion(batch, num_kp, seed, torch.float64)
    x = source_keypoints(motion)
    assert motion.kp is not None
    for b in range(batch):
        for k in range(num_kp):
            expected = motion.scale[b] * (motion.kp[b, k] @ motion.R[b] + motion.exp[b, k])
            expected[:2] += motion.t[b, :2]
            torch.testing.assert_close(x[b, k], expected)


def test_translation_in_z_is_not_used() -> None:
    motion = random_motion(2)
    assert motion.kp is not None
    far = motion.t + torch.tensor([0.0, 0.0, 5.0])
    moved = transform_keypoints(motion.kp, motion.R, motion.exp, motion.scale, far)
    assert torch.equal(moved, source_keypoints(motion))


def test_one_face_under_many_motions() -> None:
    motion = random_motion(3)
    assert motion.kp is not None
    x = transform_keypoints(motion.kp[:1], motion.R, motion.exp, motion.scale[:1], motion.t)
    alone = transform_keypoints(motion.kp[:1], motion.R[2:], motion.exp[2:], motion.scale[:1], motion.t[2:])
    torch.testing.assert_close(x[2:], alone)


def test_precision_survives_autocast() -> None:
    motion = random_motion(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = source_keypoints(motion)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, source_keypoints(motion))


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_golden_heads(size: str) -> None:
    with np.load(GOLDEN / f"{size}.npz") as arrays:
        heads = {
            name: torch.from_numpy(arrays[f"motion.{name}"])
            for name in ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")
        }
        expected = {name: arrays[name] for name in ("R_s", "x_s", "kp_info.kp", "kp_info.exp", "kp_info.yaw")}
    motion = refine_motion(heads)
    came = {
        "R_s": motion.R,
        "x_s": source_keypoints(motion),
        "kp_info.kp": motion.kp,
        "kp_info.exp": motion.exp,
        "kp_info.yaw": headpose_to_degrees(heads["yaw"]),
    }
    for name, value in came.items():
        assert value is not None
        error = np.linalg.norm(value.numpy() - expected[name]) / np.linalg.norm(expected[name])
        assert error <= 1e-4, name


def test_refined_motion_waits_for_no_device() -> None:
    heads = {name: torch.empty(2, 66, device="meta") for name in ("pitch", "yaw", "roll")}
    heads |= {name: torch.empty(2, 63, device="meta") for name in ("kp", "exp")}
    heads |= {"t": torch.empty(2, 3, device="meta"), "scale": torch.empty(2, 1, device="meta")}
    # A meta tensor has no values: reading one would raise.
    assert source_keypoints(refine_motion(heads)).shape == (2, 21, 3)


def test_select_keeps_the_batch_dimension() -> None:
    motion = random_motion(4)
    assert motion.kp is not None
    last = motion.select(-1)
    assert len(last) == 1
    assert last.kp is not None
    assert torch.equal(last.kp, motion.kp[3:])
    assert torch.equal(motion[1].R, motion.R[1:2])
    assert len(motion[1:3]) == 2
    assert [len(one) for one in motion] == [1, 1, 1, 1]
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index {index} is out of range for a motion of 4"):
            motion.select(index)


def test_motion_without_keypoints() -> None:
    motion = random_motion(2)
    bare = Motion(None, motion.exp, motion.R, motion.t, motion.scale)
    assert bare[0].kp is None
    assert bare.to("meta").kp is None
    assert bare.to("meta").exp.device.type == "meta"
    assert motion.to("cpu").R is motion.R
    with pytest.raises(ValueError, match="canonical keypoints"):
        source_keypoints(bare)


@pytest.mark.parametrize(
    ("bins", "error", "words"),
    [
        (torch.zeros(2, 65), ValueError, r"bins must have shape \(B, 66\), got \(2, 65\)"),
        (torch.zeros(66), ValueError, "1 dimensions"),
        (torch.zeros(0, 66), ValueError, "no empty dimension"),
        (torch.zeros(2, 66, dtype=torch.int64), TypeError, "bins must have dtype float32, float64, got int64"),
        (np.zeros((2, 66)), TypeError, r"bins must be a torch.Tensor, got ndarray"),
    ],
)
def test_wrong_bins(bins: torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        headpose_to_degrees(bins)


def test_wrong_angles_are_named() -> None:
    one = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"yaw must have shape \(B, 1\), got"):
        rotation_matrix(one, torch.zeros(2), one)
    with pytest.raises(TypeError, match="roll must have dtype"):
        rotation_matrix(one, one, one.half())
