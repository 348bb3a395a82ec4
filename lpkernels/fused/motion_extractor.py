"""M rebuilt for speed: a kernel for each stage, from the picture's bytes to one row of numbers; six in all.

Every layer norm but the stem's is folded into the linear layer or convolution behind it, GRN's beta into the bias
behind it, and the seven heads are one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels.fused import _weights
from lpkernels.fused._layers import WeightedLayer
from lpkernels.fused._weights import Conv
from lpkernels.models.convnextv2 import Block, ConvNeXtV2
from lpkernels.models.motion_extractor import MotionExtractor


class PatchNorm(WeightedLayer):
    """The stem: patches, linear, layer norm with its affine (``ops.patch_norm``)."""

    op = "patch_norm"
    norm_weight: Tensor
    norm_bias: Tensor

    def __init__(self, conv: nn.Module, norm: nn.Module, dtype: torch.dtype) -> None:
        weight, bias = _weights.plain(conv)
        super().__init__(_weights.channels_last(weight), bias, dtype)
        norm_weight, norm_bias = _weights.plain(norm)
        self.register_buffer("norm_weight", norm_weight.to(self.bias.dtype))
        self.register_buffer("norm_bias", norm_bias.to(self.bias.dtype))

    def arguments(self, x: Tensor) -> dict[str, Any]:
        affine = {"norm_weight": self.norm_weight, "norm_bias": self.norm_bias}
        return {"x": x, "weight": self.weight, "bias": self.bias, **affine}


class ConvNextStage(WeightedLayer):
    """All blocks of a stage and the step before them, if any (``ops.convnext_stage``); taps in float32.

    ``step``: a convolution into which its layer norm's affine is folded. A block's layer norm is folded into its
    widening linear layer, GRN's beta into the narrowing one's bias.
    """

    op = "convnext_stage"
    taps: Tensor
    taps_bias: Tensor
    wide_weight: Tensor
    wide_bias: Tensor
    gamma: Tensor
    step_weight: Tensor | None
    step_bias: Tensor | None

    def __init__(self, blocks: Sequence[Block], step: Conv | None, dtype: torch.dtype) -> None:
        narrow, biases = zip(*(_weights.plain(block.pwconv2) for block in blocks), strict=True)
        betas = (block.grn.beta.detach().double().flatten() for block in blocks)
        shifted = [bias + weight @ beta for weight, bias, beta in zip(narrow, biases, betas, strict=True)]
        super().__init__(torch.stack(narrow), torch.stack(shifted), dtype)
        taps, taps_biases = zip(*(_weights.plain(block.dwconv) for block in blocks), strict=True)
        wide, wide_biases = zip(*(_fold_norm(block.norm, block.pwconv1) for block in blocks), strict=True)
        gammas = [block.grn.gamma.detach().double().flatten() for block in blocks]
        exact = self.bias.dtype
        self.register_buffer("taps", torch.stack(taps).squeeze(2).movedim(1, -1).to(exact).contiguous())
        self.register_buffer("taps_bias", torch.stack(taps_biases).to(exact))
        self.register_buffer("wide_weight", torch.stack(wide).to(dtype))
        self.register_buffer("wide_bias", torch.stack(wide_biases).to(exact))
        self.register_buffer("gamma", torch.stack(gammas).to(exact))
        self.register_buffer("step_weight", step and _weights.channels_last(step[0]).to(dtype).contiguous())
        self.register_buffer("step_bias", step and step[1].to(exact).contiguous())

    def arguments(self, x: Tensor) -> dict[str, Any]:
        first = {"taps": self.taps, "taps_bias": self.taps_bias, "wide_weight": self.wide_weight}
        second = {"gamma": self.gamma, "weight": self.weight, "bias": self.bias}
        step = {"step_weight": self.step_weight, "step_bias": self.step_bias}
        return {"x": x, **first, "wide_bias": self.wide_bias, **second, **step}


class PoolNormLinear(WeightedLayer):
    """Mean over space, layer norm without affine, all heads; weights in float32 at least (``ops.pool_norm_linear``)."""

    op = "pool_norm_linear"

    def __init__(self, linear: Conv, dtype: torch.dtype) -> None:
        super().__init__(*linear, torch.promote_types(dtype, torch.float32))

    def arguments(self, x: Tensor) -> dict[str, Any]:
        return {"x": x, "weight": self.weight, "bias": self.bias}


class FusedMotionExtractor(nn.Module):
    """The motion extractor with folded norms and prepacked weights.

    Nothing waits for the device and memory comes from ``torch.empty`` alone: a CUDA graph can capture both methods.

    Args:
        baseline: left as it is; none of its tensors is kept. The layers are made on its device.
        dtype: of activations and weights: float16, bfloat16 or float32. The heads' weights are float32.
    """

    def __init__(self, baseline: MotionExtractor, dtype: torch.dtype) -> None:
        super().__init__()
        network = baseline.detector
        (conv, norm), *steps = [list(layer.children()) for layer in network.downsample_layers]
        self.stem = PatchNorm(conv, norm, dtype)
        folded = [None, *(_fold_norm(norm, conv) for norm, conv in steps)]
        stages = zip(network.stages, folded, strict=True)
        self.stages = nn.ModuleList(ConvNextStage(_blocks(stage), step, dtype) for stage, step in stages)
        linears = [_fold_norm(network.norm, getattr(network, f"fc_{name}")) for name in ConvNeXtV2.HEADS]
        weights, biases = zip(*linears, strict=True)
        self.head = PoolNormLinear((torch.cat(weights), torch.cat(biases)), dtype)
        self.widths = {name: bias.shape[0] for name, bias in zip(ConvNeXtV2.HEADS, biases, strict=True)}

    @torch.no_grad()
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """The published network's answer.

        Args:
            image: (B, 3, H, W), RGB in 0..1, a float dtype, any strides; H and W at least 32.

        Returns:
            ``pitch``, ``yaw``, ``roll`` (B, num_bins), ``t`` (B, 3), ``exp`` (B, 3K), ``scale`` (B, 1), ``kp`` (B, 3K):
            float32, views of one row of ``heads``.
        """
        return self.split(self._rows(image.permute(0, 2, 3, 1)))

    @torch.no_grad()
    def heads(self, frames: Tensor) -> Tensor:
        """The heads of pictures as they come from a camera, without a float picture in between.

        Args:
            frames: (B, H, W, 3) uint8, RGB, of the size the network is to see.

        Returns:
            (B, 3 num_bins + 6K + 4) float32: all heads side by side in the order of ``ConvNeXtV2.HEADS``.
        """
        return self._rows(frames)

    def split(self, heads: Tensor) -> dict[str, Tensor]:
        """A row of heads (B, N) as the published network's dict: views."""
        return dict(zip(self.widths, heads.split(list(self.widths.values()), dim=1), strict=True))

    def _rows(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)


def _blocks(stage: nn.Module) -> list[Block]:
    return [block for block in stage.children() if isinstance(block, Block)]


def _fold_norm(norm: nn.Module, layer: nn.Module) -> Conv:
    """A layer norm's affine as part of the linear layer or convolution without padding that reads it, float64.

    ``W (n * gamma + beta) + b = (W * gamma) n + (b + W beta)``, for a convolution summed over its taps.
    """
    gamma, beta = _weights.plain(norm)
    weight, bias = _weights.plain(layer)
    per_input = [1, -1, *[1] * (weight.dim() - 2)]
    return weight * gamma.reshape(per_input), bias + (weight * beta.reshape(per_input)).flatten(1).sum(1)
