"""keypoint_transform: raw heads to the driving keypoints before stitching, relative motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import KEYPOINTS, Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.work import Provider, Subject
from lpkernels import ops, ref
from lpkernels.ops.keypoint_transform import POSE_BINS, heads_size, motion_size


def published(driving: Tensor, kp: Tensor, x_s: Tensor, source: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The original's arithmetic: three softmaxes, three rotation matrices and their product, the change, Eqn. 2."""
    sizes = [POSE_BINS, POSE_BINS, POSE_BINS, 3, 3 * KEYPOINTS, 1, 3 * KEYPOINTS]
    *angles, t, exp, scale, _ = driving.split(sizes, dim=1)
    index = torch.arange(POSE_BINS, dtype=driving.dtype, device=driving.device)
    x, y, z = ((F.softmax(bins, dim=1) * index).sum(1) * 3 - 97.5 for bins in angles)
    R = _rotation(*(torch.deg2rad(degrees) for degrees in (x, y, z)))
    exp_0, R_0, t_0, scale_0 = ops.unpack_motion(first)
    exp_s, R_s, t_s, scale_s = ops.unpack_motion(source)
    delta = exp_s + (exp.view(-1, KEYPOINTS, 3) - exp_0)
    rotated = kp @ ((R @ R_0.transpose(1, 2)) @ R_s) + delta
    shift = (t_s + (t - t_0)) * torch.tensor([1.0, 1.0, 0.0], device=t.device)
    x_d = (scale_s * (scale / scale_0))[..., None] * rotated + shift[:, None]
    return x_d, torch.cat([exp, R.flatten(1), t, scale], dim=1)


def _rotation(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rx = torch.stack([one, zero, zero, zero, x.cos(), -x.sin(), zero, x.sin(), x.cos()], 1).view(-1, 3, 3)
    ry = torch.stack([y.cos(), zero, y.sin(), zero, one, zero, -y.sin(), zero, y.cos()], 1).view(-1, 3, 3)
    rz = torch.stack([z.cos(), -z.sin(), zero, z.sin(), z.cos(), zero, zero, zero, one], 1).view(-1, 3, 3)
    return (rz @ ry @ rx).transpose(1, 2)


def reference(driving: Tensor, kp: Tensor, x_s: Tensor, source: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The op's defaults in FP32."""
    return ref.keypoint_transform(driving, kp, x_s, source, first, None, None, POSE_BINS, True, True, True, 1.0)


def single_precision(name: str, published: object, device: torch.device) -> list[Provider]:
    """PyTorch eager and compiled, and every backend; keypoints are FP32 in all of them, as in the original."""
    torchs = torch_providers(published, (), device)  # type: ignore[arg-type]
    return [
        *(dataclasses.replace(provider, precision="fp32") for provider in torchs if not provider.yardstick),
        *(provider for provider in op_providers(name, (), device) if provider.precision == "fp32"),
    ]


def subjects(context: Context) -> Iterator[Subject]:
    """The published heads at each batch, with one source and one first frame."""
    for batch in context.batches:

        def inputs(seed: int, batch: int = batch) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            source, _ = random.keypoints(1)

            def motion() -> Tensor:
                angles = (random.normal(1, scale=0.3) for _ in range(3))
                exp, t = random.normal(1, KEYPOINTS, 3, scale=0.03), random.normal(1, 3, scale=0.1)
                return ops.pack_motion(exp, _rotation(*angles), t, 1.3 + random.normal(1, 1, scale=0.1))

            heads = random.normal(batch, heads_size(KEYPOINTS))
            return heads, source, source, motion(), motion()

        yield Subject(
            level="ops",
            name="keypoint_transform",
            shape=f"{heads_size(KEYPOINTS)} heads -> {KEYPOINTS} keypoints",
            batch=batch,
            inputs=inputs,
            reference=reference,
            providers=single_precision("keypoint_transform", published, context.device),
            elements=batch * (heads_size(KEYPOINTS) - 3 * KEYPOINTS) + 2 * motion_size(KEYPOINTS) + 3 * KEYPOINTS,
            fixed_bytes=4 * batch * (motion_size(KEYPOINTS) + 3 * KEYPOINTS),
            # Per bin: a difference, exp, two sums and a product; R twice multiplied; per coordinate a dot product.
            flops=batch * (3 * 5 * POSE_BINS + 2 * 45 + 3 * KEYPOINTS * 10),
            kernel=True,
        )
