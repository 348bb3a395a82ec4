"""Smoothing against jitter: a Kalman filter over the clip and a Rauch-Tung-Striebel pass back.

Each coordinate is a random walk seen through noise: ``x_t = x_(t-1) + w``, ``y_t = x_t + v``, with w of variance
``process_variance`` and v of variance ``observation_variance``; the first state has mean y_0 and variance 1, as in the
original. All coordinates share the variances, so the gains are one number a frame.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from lpkernels.animate.motion import Motion, source_keypoints
from lpkernels.animate.template import MotionTemplate
from lpkernels.errors import InputError

INITIAL_VARIANCE = 1.0


def smooth(
    template: MotionTemplate, observation_variance: float = 3e-7, process_variance: float = 1e-5
) -> MotionTemplate:
    """The template with smooth exp, R, t and scale; smoothed rotations are projected back to rotations.

    Canonical keypoints and the eyes' and lips' ratios stay; ``x_s`` is computed anew from the smooth motion, or left
    out where the template has no ``kp`` to do so.

    Args:
        observation_variance: of the jitter; the larger, the smoother.
        process_variance: of the true motion from frame to frame; the smaller, the smoother.

    Raises:
        InputError: a variance that is not a positive number.
    """
    variances = {"observation_variance": observation_variance, "process_variance": process_variance}
    for name, value in variances.items():
        if not math.isfinite(value) or value <= 0:
            raise InputError(f"{name} must be a number above 0, got {value!r}")
    exp, t, scale = (smooth_signal(signal, **variances) for signal in (template.exp, template.t, template.scale))
    R = nearest_rotation(smooth_signal(template.R.double(), **variances)).float()
    x_s = None
    if template.x_s is not None and template.kp is not None:
        x_s = source_keypoints(Motion(template.kp, exp, R, t, scale))
    return dataclasses.replace(template, R=R, exp=exp, t=t, scale=scale, x_s=x_s)


def smooth_signal(signal: Tensor, observation_variance: float, process_variance: float) -> Tensor:
    """The most likely random walk behind ``signal``; (N, ...) in and out, computed in float64."""
    observed = signal.double()
    means = observed.clone()
    variances = [0.0] * len(observed)
    predicted = INITIAL_VARIANCE
    for frame in range(len(observed)):
        previous = means[max(frame - 1, 0)]
        gain = predicted / (predicted + observation_variance)
        means[frame] = previous + gain * (observed[frame] - previous)
        variances[frame] = gain * observation_variance
        predicted = variances[frame] + process_variance
    for frame in range(len(observed) - 2, -1, -1):
        gain = variances[frame] / (variances[frame] + process_variance)
        means[frame] += gain * (means[frame + 1] - means[frame])
    return means.to(signal.dtype)


def nearest_rotation(matrices: Tensor) -> Tensor:
    """The rotations nearest to (N, 3, 3) matrices in the Frobenius norm (Kabsch): determinant +1, never a mirror."""
    u, _, vh = torch.linalg.svd(matrices)
    mirrored = torch.linalg.det(u @ vh).sign()
    signs = torch.stack([torch.ones_like(mirrored), torch.ones_like(mirrored), mirrored], dim=-1)
    return (u * signs.unsqueeze(-2)) @ vh
