"""The smoother against the most likely path as a dense linear system."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lpkernels.animate.motion import source_keypoints
from lpkernels.animate.smoothing import nearest_rotation, smooth, smooth_signal
from lpkernels.animate.template import MotionTemplate
from lpkernels.errors import InputError
from tests.animate.motions import random_motion


def template(n_frames: int, seed: int = 0) -> MotionTemplate:
    motion = random_motion(n_frames, seed=seed)
    return MotionTemplate(n_frames, 25, motion.R, motion.exp, motion.t, motion.scale)


def most_likely_path(observed: np.ndarray, r: float, q: float) -> np.ndarray:
    """argmin over x of (x_0 - y_0)^2 + sum (y_t - x_t)^2 / r + sum (x_t - x_(t-1))^2 / q, by its normal equations."""
    n = len(observed)
    steps = np.diff(np.eye(n), axis=0)
    precision = np.eye(n) / r + steps.T @ steps / q
    right = observed / r
    precision[0, 0] += 1
    right[0] += observed[0]
    return np.linalg.solve(precision, right)


@given(n=st.integers(1, 40), r=st.floats(1e-8, 1e2), q=st.floats(1e-8, 1e2), seed=st.integers(0, 5))
def test_most_likely_path(n: int, r: float, q: float, seed: int) -> None:
    observed = np.random.RandomState(seed).standard_normal((n, 2, 3))
    smoothed = smooth_signal(torch.from_numpy(observed), r, q)
    expected = most_likely_path(observed.reshape(n, 6), r, q).reshape(n, 2, 3)
    np.testing.assert_allclose(smoothed.numpy(), expected, atol=1e-6)


def test_constant_motion_stays() -> None:
    one = template(1)
    constant = MotionTemplate(9, 25, *(value.repeat(9, *[1] * (value.ndim - 1)) for value in _required(one)))
    smoothed = smooth(constant, observation_variance=1.0)
    for name, value in smoothed.tensors().items():
        torch.testing.assert_close(value, getattr(constant, name), atol=1e-6, rtol=0, msg=name)


def test_single_frame() -> None:
    one = template(1)
    smoothed = smooth(one)
    torch.testing.assert_close(smoothed.exp, one.exp)
    torch.testing.assert_close(smoothed.R, one.R)


def test_jitter_shrinks_and_more_so_with_more_noise() -> None:
    jittery = template(60)
    roughness = [
        float(smooth(jittery, observation_variance=variance).exp.diff(dim=0).square().mean())
        for variance in (3e-7, 1e-4, 1e-2)
    ]
    assert float(jittery.exp.diff(dim=0).square().mean()) > roughness[0] > 2 * roughness[1] > 4 * roughness[2]


def test_rotations_stay_rotations() -> None:
    smoothed = smooth(template(30), observation_variance=1e-2)
    torch.testing.assert_close(smoothed.R @ smoothed.R.mT, torch.eye(3).expand(30, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(smoothed.R), torch.ones(30))
    assert smoothed.R.dtype == torch.float32


def test_nearest_rotation_is_never_a_mirror() -> None:
    stretched = random_motion(5, dtype=torch.float64).R * 1.7
    torch.testing.assert_close(nearest_rotation(stretched), stretched / 1.7)
    mirror = torch.diag(torch.tensor([1.0, 0.9, -0.8], dtype=torch.float64))[None]
    torch.testing.assert_close(torch.linalg.det(nearest_rotation(mirror)), torch.ones(1, dtype=torch.float64))


def test_the_rest_of_the_template() -> None:
    motion = random_motion(8)
    eyes, lips = torch.rand(8, 2), torch.rand(8, 1)
    full = dataclasses.replace(template(8), kp=motion.kp, x_s=source_keypoints(motion), c_eyes=eyes, c_lip=lips)
    smoothed = smooth(full, observation_variance=1e-3)
    assert smoothed.kp is full.kp
    assert smoothed.c_eyes is eyes
    assert smoothed.c_lip is lips
    assert smoothed.fps == 25
    assert smoothed.x_s is not None
    frame = smoothed.motion(5)
    torch.testing.assert_close(smoothed.x_s[5:6], source_keypoints(frame))
    assert smooth(dataclasses.replace(full, kp=None)).x_s is None


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["observation_variance", "process_variance"])
def test_wrong_variance(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} must be a number above 0, got {value!r}"):
        smooth(template(2), **{name: value})


def _required(value: MotionTemplate) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return value.R, value.exp, value.t, value.scale
