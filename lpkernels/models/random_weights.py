"""Random weights that behave like trained ones: keypoints, poses, stitching offsets and pixels in a usable range."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from lpkernels.models.blocks import SpectralConv2d
from lpkernels.models.stitching_retargeting_network import StitchingRetargetingNetwork

# (scale of weight and bias, offset of bias) of the layers whose output a person would notice:
# keypoints in the unit cube, small expressions, translations and stitching offsets, scale near 1.3, little occlusion,
# unsaturated pixels.
_LAYER_SCALES = {
    "fc_kp": (0.07, 0.0),
    "fc_exp": (0.01, 0.0),
    "fc_t": (0.03, 0.0),
    "fc_scale": (0.05, 1.3),
    "conv_img": (0.25, 0.0),
    "occlusion": (0.1, 1.0),
}
_MLP_OUTPUT_SCALE = (0.01, 0.0)
# Twice the variance that a ReLU network needs, so that the softmax over keypoints is not flat.
_MASK_GAIN, _RELU_GAIN = 4.0, 2.0
_POWER_ITERATIONS = 10


def make_state_dict(network: nn.Module, seed: str) -> dict[str, Tensor]:
    """A float32 state dict for ``network``, which may be on the meta device.

    Each tensor is drawn by its own generator, seeded with ``seed`` and the tensor's name: a layer's weights do not
    depend on the other layers. The same seed gives the same weights on every machine with this PyTorch (singular
    vectors up to rounding).
    """
    modules = dict(network.named_modules())
    mlp_outputs = {
        f"{name}.mlp.{len(module.mlp) - 1}".lstrip(".")
        for name, module in modules.items()
        if isinstance(module, StitchingRetargetingNetwork)
    }
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if leaf not in ("weight_u", "weight_v"):
            scale = _MLP_OUTPUT_SCALE if layer in mlp_outputs else _scale_of(layer)
            gain = _MASK_GAIN if layer.endswith("mask") else _RELU_GAIN
            state[name] = _draw(leaf, tuple(tensor.shape), _generator(f"{seed}/{name}"), scale, gain)
    for name, module in modules.items():
        if isinstance(module, SpectralConv2d):
            u, v = _singular_vectors(state[f"{name}.weight_orig"], _generator(f"{seed}/{name}.weight_u"))
            state[f"{name}.weight_u"], state[f"{name}.weight_v"] = u, v
    return state


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(key.encode()))


def _scale_of(layer: str) -> tuple[float, float]:
    parts = layer.split(".")
    return next((_LAYER_SCALES[part] for part in parts if part in _LAYER_SCALES), (1.0, 0.0))


def _draw(
    leaf: str, shape: tuple[int, ...], generator: torch.Generator, scale: tuple[float, float], gain: float
) -> Tensor:
    factor, offset = scale
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if leaf == "running_var":
        return torch.rand(shape, generator=generator) + 0.5
    values = torch.randn(shape, generator=generator)
    if leaf in ("weight", "weight_orig") and len(shape) >= 2:
        return values.mul_(math.sqrt(gain / math.prod(shape[1:])) * factor)
    if leaf == "weight":
        return values.mul_(0.1).add_(1.0)
    if leaf == "running_mean":
        return values.mul_(0.1)
    return values.mul_(0.1 * factor).add_(offset)


def _singular_vectors(weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Estimates (u, v) of the first singular vectors of ``weight`` flattened to (out, rest), by power iteration."""
    matrix = weight.flatten(1)
    u = torch.randn(matrix.shape[0], generator=generator)
    v = matrix.T @ u
    for _ in range(_POWER_ITERATIONS):
        v = nn.functional.normalize(matrix.T @ u, dim=0)
        u = nn.functional.normalize(matrix @ v, dim=0)
    return u, v
