"""patch_norm: the motion extractor's stem, from a picture's bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.networks import Random
from benchmarks.ops._common import op_providers, torch_providers
from benchmarks.ops._convnext import PATCH
from benchmarks.work import Subject
from lpkernels import ref

LOWERED = (1,)  # the weight; bytes stay bytes, bias and the norm's affine FP32


def published(x: Tensor, weight: Tensor, bias: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> Tensor:
    """Bytes to floats in 0..1, a conv2d, a layer norm over channels."""
    picture = (x.permute(0, 3, 1, 2).float() / 255).to(weight.dtype)
    planes = F.conv2d(picture, weight.permute(0, 3, 1, 2), bias.to(weight.dtype), stride=weight.shape[1])
    affine = norm_weight.to(weight.dtype), norm_bias.to(weight.dtype)
    return F.layer_norm(planes.permute(0, 2, 3, 1), bias.shape, *affine, eps=1e-6)


def subjects(context: Context) -> Iterator[Subject]:
    """The model's picture at each batch."""
    size, outputs = context.config.image_size, context.config.motion_extractor.dims[0]
    for batch in context.batches:
        patches = batch * (size // PATCH) ** 2

        def inputs(seed: int, batch: int = batch) -> tuple[Tensor, ...]:
            random = Random(seed, context.device)
            picture = random.uniform(batch, size, size, 3, high=256).to(torch.uint8)
            weight = random.normal(outputs, PATCH, PATCH, 3, scale=0.2)
            return picture, weight, random.normal(outputs), random.normal(outputs), random.normal(outputs)

        yield Subject(
            level="ops",
            name="patch_norm",
            shape=f"{size}x{size}x3 -> {outputs}",
            batch=batch,
            inputs=inputs,
            reference=ref.patch_norm,
            providers=[
                *torch_providers(published, LOWERED, context.device),
                *op_providers("patch_norm", LOWERED, context.device),
            ],
            elements=(patches + 3 * PATCH**2) * outputs,
            fixed_bytes=batch * size * size * 3 + 12 * outputs,
            flops=2 * patches * 3 * PATCH**2 * outputs,
            kernel=True,
        )
