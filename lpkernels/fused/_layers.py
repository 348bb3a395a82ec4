"""The layers of the fused networks: an op with its packed weight, ready to be called with activations.

Weights and biases come as in PyTorch's layout in float64 and are packed and rounded once. Activations are channels-last
in the layer's dtype; biases are float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lpkernels import _winograd, ops
from lpkernels.fused._weights import Conv, channels_last

PACKED_AT_ONCE = 64  # outputs


class Layer(nn.Module):
    """One call of one op.

    ``arguments`` turns a call's activations into the op's arguments, in the order of its schema; what is written into
    and not given is None there and made by the op.
    """

    op: ClassVar[str]

    def arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(ops, self.op)(**self.arguments(*args, **kwargs))


class WeightedLayer(Layer):
    """A layer with a packed weight in ``dtype`` and a bias in float32."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(dtype).contiguous())
        self.register_buffer("bias", bias.to(torch.promote_types(dtype, torch.float32)).contiguous())


class ConvAct(WeightedLayer):
    """conv, bias, residual, LeakyReLU, gain (``ops.conv_act``); of a grid of ``classes`` if asked.

    ``winograd``, here and below: with products that neighbouring rows share, where the op has a kernel for them; not
    of classes. ``together``: in tiles of fewer outputs, for a picture that has few tiles.
    """

    op = "conv_act"

    def __init__(
        self,
        conv: Conv,
        negative_slope: float,
        dtype: torch.dtype,
        classes: bool = False,
        winograd: bool = False,
        together: bool = False,
    ) -> None:
        weight = channels_last(conv[0])
        weight = _winograd_weight(self.op, weight, dtype, together) if winograd else _weight(weight, classes)
        super().__init__(weight, conv[1], dtype)
        self.negative_slope = negative_slope

    def arguments(
        self,
        x: Tensor,
        *,
        residual: Tensor | None = None,
        gain: Tensor | None = None,
        out: Tensor | None = None,
        stats: Tensor | None = None,
    ) -> dict[str, Any]:
        own = {"x": x, "weight": self.weight, "bias": self.bias, "negative_slope": self.negative_slope}
        return {**own, "residual": residual, "gain": gain, "out": out, "stats": stats}

    def new_stats(self, x: Tensor) -> Tensor:
        """Room for the statistics of this layer's answer to ``x``: (B, O, 2), or in parts (``ops.stat_parts``)."""
        outputs = self.bias.shape[0]
        parts = ops.stat_parts(x, outputs, _winograd.is_tiles(self.weight.shape))
        shape = (outputs, 2) if parts is None else (parts, outputs, 2)
        return torch.empty(x.shape[0], *shape, dtype=self.bias.dtype, device=x.device)


class ConvPool(WeightedLayer):
    """conv 3x3x3, ReLU, average pool in the plane (``ops.conv_pool``)."""

    op = "conv_pool"

    def __init__(self, conv: Conv, dtype: torch.dtype, winograd: bool = False) -> None:
        weight = channels_last(conv[0])
        super().__init__(_winograd_weight(self.op, weight, dtype) if winograd else weight, conv[1], dtype)

    def arguments(self, x: Tensor, *, out: Tensor | None = None) -> dict[str, Any]:
        return {"x": x, "weight": self.weight, "bias": self.bias, "out": out}


class UpsampleConv(WeightedLayer):
    """Nearest upsampling in the plane, conv of three taps an axis, ReLU, on the small grid (``ops.upsample_conv``)."""

    op = "upsample_conv"

    def __init__(self, conv: Conv, scale: int, dtype: torch.dtype, classes: bool = False) -> None:
        shared = ops.shares_products(conv[0].device.type, dtype, conv[0].shape[1], conv[0].shape[0])

        def pack(weight: Tensor) -> Tensor:
            if shared:
                return ops.pack_upsample_products(weight, multiple=1).to(dtype)
            return ops.pack_upsample_weight(weight, scale, multiple=1).to(dtype)

        # Some outputs at a time: the largest layer's phases are 200 MiB in float64, and made of copies of it.
        parts = [pack(part) for part in conv[0].split(PACKED_AT_ONCE)]
        super().__init__(torch.cat(parts, dim=2 if shared else 1), conv[1], dtype)
        self.scale, self.classes = scale, classes

    def arguments(self, x: Tensor, *, out: Tensor | None = None) -> dict[str, Any]:
        own = {"x": x, "weight": self.weight, "bias": self.bias, "negative_slope": 0.0, "out": out}
        return {**own, "classes": self.classes, "scale": self.scale}


class SpadeConv(WeightedLayer):
    """SPADE's gamma and beta convs, modulation and LeakyReLU (``ops.spade_conv``); without ``beta`` gamma alone."""

    op = "spade_conv"

    def __init__(
        self,
        gamma: Conv,
        beta: Conv | None,
        negative_slope: float,
        dtype: torch.dtype,
        classes: bool = False,
        winograd: bool = False,
    ) -> None:
        weight, bias = ops.pack_gamma_weight(*gamma) if beta is None else ops.pack_spade_weight(*gamma, *beta)
        weight = _winograd_weight(self.op, weight, dtype) if winograd else _weight(weight, classes)
        super().__init__(weight, bias, dtype)
        self.negative_slope = negative_slope

    def arguments(self, actv: Tensor, x: Tensor, stats: Tensor, *, out: Tensor | None = None) -> dict[str, Any]:
        own = {"actv": actv, "weight": self.weight, "bias": self.bias, "x": x, "stats": stats}
        return {**own, "negative_slope": self.negative_slope, "out": out}


class ConvSpade(WeightedLayer):
    """conv, bias, residual, then SPADE with its gamma and beta convs and LeakyReLU (``ops.conv_spade``).

    Here and in ``SpadeBlocks`` neighbouring rows share products wherever the op has a kernel for them: it pays.
    """

    op = "conv_spade"

    def __init__(self, conv: Conv, gamma: Conv, beta: Conv, negative_slope: float, dtype: torch.dtype) -> None:
        spade_weight, spade_bias = ops.pack_spade_weight(*gamma, *beta)
        weight, spade_weight = _winograd_weights(self.op, channels_last(conv[0]), spade_weight, dtype)
        super().__init__(weight, conv[1], dtype)
        self.spade_weight: Tensor
        self.spade_bias: Tensor
        self.register_buffer("spade_weight", spade_weight.to(dtype))
        self.register_buffer("spade_bias", spade_bias.to(self.bias.dtype))
        self.negative_slope = negative_slope

    def arguments(
        self,
        x: Tensor,
        actv: Tensor,
        *,
        residual: Tensor | None = None,
        y: Tensor | None = None,
        out: Tensor | None = None,
    ) -> dict[str, Any]:
        own = {"x": x, "weight": self.weight, "bias": self.bias, "actv": actv}
        own |= {"spade_weight": self.spade_weight, "spade_bias": self.spade_bias}
        return {**own, "negative_slope": self.negative_slope, "residual": residual, "y": y, "out": out}


class SpadeBlocks(WeightedLayer):
    """Residual blocks' convs, each with the SPADE behind it (``ops.spade_blocks``): conv, gamma and beta of each."""

    op = "spade_blocks"

    def __init__(self, steps: Iterable[tuple[Conv, Conv, Conv]], negative_slope: float, dtype: torch.dtype) -> None:
        packed = []
        for conv, gamma, beta in steps:
            spade_weight, spade_bias = ops.pack_spade_weight(*gamma, *beta)
            weight, spade_weight = _winograd_weights(self.op, channels_last(conv[0]), spade_weight, dtype)
            packed.append((weight.to(dtype), conv[1], spade_weight.to(dtype), spade_bias))
        weight, bias, spade_weight, spade_bias = map(torch.stack, zip(*packed, strict=True))
        super().__init__(weight, bias, dtype)
        self.spade_weight: Tensor
        self.spade_bias: Tensor
        self.register_buffer("spade_weight", spade_weight)
        self.register_buffer("spade_bias", spade_bias.to(self.bias.dtype))
        self.negative_slope = negative_slope

    def arguments(self, x: Tensor, dx: Tensor, actv: Tensor) -> dict[str, Any]:
        own = {"x": x, "dx": dx, "actv": actv, "weight": self.weight, "bias": self.bias}
        own |= {"spade_weight": self.spade_weight, "spade_bias": self.spade_bias}
        return {**own, "negative_slope": self.negative_slope}


class SpadeShortcut(WeightedLayer):
    """conv_s and its SPADE's gamma and beta convs (``ops.spade_shortcut``)."""

    op = "spade_shortcut"

    def __init__(self, conv_s: Conv, gamma: Conv, beta: Conv, dtype: torch.dtype, classes: bool = False) -> None:
        weight, bias, shortcut = ops.pack_shortcut_weight(*conv_s, *gamma, *beta)
        super().__init__(_weight(weight, classes), bias, dtype)
        self.shortcut: Tensor
        self.register_buffer("shortcut", shortcut.to(dtype))

    def arguments(self, actv: Tensor, x: Tensor, stats: Tensor, *, out: Tensor | None = None) -> dict[str, Any]:
        own = {"actv": actv, "weight": self.weight, "bias": self.bias, "shortcut": self.shortcut}
        return {**own, "x": x, "stats": stats, "out": out}


class MaskConv(WeightedLayer):
    """The mask head (``ops.mask_conv3d``)."""

    op = "mask_conv3d"

    def __init__(self, conv: Conv, dtype: torch.dtype) -> None:
        outputs, channels = conv[0].shape[:2]
        pairs = ops.pairs_rows(conv[0].device.type, dtype, channels, outputs)
        pack = ops.pack_mask_row_pairs if pairs else ops.pack_mask_weight
        super().__init__(pack(conv[0]), conv[1], dtype)

    def arguments(self, x: Tensor) -> dict[str, Any]:
        return {"x": x, "weight": self.weight, "bias": self.bias}


class OcclusionHead(WeightedLayer):
    """The occlusion map (``ops.occlusion_head``); the conv's channels are c * depth + d."""

    op = "occlusion_head"

    def __init__(self, conv: Conv, depth: int, dtype: torch.dtype) -> None:
        super().__init__(ops.pack_occlusion_weight(conv[0], depth), conv[1], dtype)

    def arguments(self, x: Tensor) -> dict[str, Any]:
        return {"x": x, "weight": self.weight, "bias": self.bias}


class ConvImage(WeightedLayer):
    """The last conv, pixel shuffle, sigmoid, and the 8-bit store (``ops.conv_img``)."""

    op = "conv_img"

    def __init__(self, conv: Conv, upscale: int, dtype: torch.dtype) -> None:
        super().__init__(channels_last(conv[0]), conv[1], dtype)
        self.upscale = upscale

    def arguments(self, x: Tensor, as_uint8: bool) -> dict[str, Any]:
        own = {"x": x, "weight": self.weight, "bias": self.bias}
        return {**own, "upscale": self.upscale, "as_uint8": as_uint8}


class SparseMotion(Layer):
    """The hourglass's input (``ops.sparse_motion``)."""

    op = "sparse_motion"

    def arguments(
        self,
        compressed: Tensor,
        background: Tensor,
        kp_source: Tensor,
        kp_driving: Tensor,
        *,
        out: Tensor | None = None,
    ) -> dict[str, Any]:
        own = {"compressed": compressed, "background": background, "kp_source": kp_source, "kp_driving": kp_driving}
        return {**own, "out": out}


class FlowWarp(Layer):
    """Softmax, deformation and the sample of the volume (``ops.flow_warp``)."""

    op = "flow_warp"

    def arguments(
        self, mask_logits: Tensor, kp_source: Tensor, kp_driving: Tensor, volume: Tensor, want_deformation: bool
    ) -> dict[str, Any]:
        own = {"mask_logits": mask_logits, "kp_source": kp_source, "kp_driving": kp_driving, "volume": volume}
        return {**own, "want_deformation": want_deformation}


def _weight(packed: Tensor, classes: bool) -> Tensor:
    return ops.pack_class_weight(packed) if classes else packed


def _winograd_weight(op: str, packed: Tensor, dtype: torch.dtype, together: bool = False) -> Tensor:
    """A weight of 3x3 or 3x3x3 taps in the form that the op has a kernel for here."""
    outputs, *taps, channels = packed.shape
    depth = taps[0] if len(taps) == 3 else 1
    taken = ops.takes_winograd(op, packed.device.type, dtype, channels, outputs, depth)
    return ops.pack_winograd_weight(packed, together or ops.packs_together(op, outputs)) if taken else packed


def _winograd_weights(op: str, packed: Tensor, spade: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same of a convolution and the SPADE behind it: both weights have that form, or neither."""
    outputs, *_, channels = packed.shape
    if not ops.takes_winograd(op, packed.device.type, dtype, channels, outputs, hidden=spade.shape[-1]):
        return packed, spade
    return ops.pack_winograd_weight(packed, ops.packs_together(op, outputs)), ops.pack_winograd_weight(spade)
