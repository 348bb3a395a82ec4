"""W rebuilt for speed: one buffer per level of the hourglass, written in place, and one op per layer.

Level l of the hourglass, at H / 2^l, has one buffer [up block's output | encoder's output], which is the concatenation
that the baseline's decoder makes: ``conv_pool`` writes its right part on the way down, ``upsample_conv`` its left part
on the way up, and the next layer reads all of it. At level 0 the right part is the sparse motion input itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lpkernels import ops
from lpkernels.fused import _weights
from lpkernels.fused._layers import ConvAct, ConvPool, FlowWarp, MaskConv, OcclusionHead, SparseMotion, UpsampleConv
from lpkernels.fused._weights import CHANNEL_MULTIPLE, PART_MULTIPLE, place, round_up
from lpkernels.models.blocks import DownBlock3d, Hourglass, UpBlock3d
from lpkernels.models.warp_source import SourceTensors
from lpkernels.models.warping_network import WarpingNetwork

RELU = 0.0
LEAKY = 0.01


@dataclass(frozen=True, eq=False)
class WarpSource(SourceTensors):
    """All that W needs of a source and computes once; batch 1 serves any number of driving keypoints.

    Attributes:
        volume: the feature volume, (B, D, H, W, C), channels-last, in the network's dtype.
        compressed: its few channels that the motions sample, (B, D, H, W, C'), the network's dtype.
        background: ``compressed`` under the identity motion, of the same shape.
        kp_source: the source's keypoints, (B, K, 3) float32, where they are known (``FusedLivePortrait``).
    """

    volume: Tensor
    compressed: Tensor
    background: Tensor
    kp_source: Tensor | None = None


class WarpResult(NamedTuple):
    """``out`` (B, H, W, 4 * block_expansion) channels-last; ``occlusion_map`` (B, H, W) float32 in 0..1, None if not
    estimated; ``deformation`` (B, D, H, W, 3) float32, normalised (x, y, z)."""

    out: Tensor
    occlusion_map: Tensor | None
    deformation: Tensor


class FusedHourglass(nn.Module):
    """The hourglass on level buffers; channels of level 0 are ``parts[0]``, of the answer too."""

    def __init__(self, baseline: Hourglass, dtype: torch.dtype) -> None:
        super().__init__()
        encoder = [block for block in baseline.encoder.down_blocks if isinstance(block, DownBlock3d)]
        decoder = [block for block in reversed(baseline.decoder.up_blocks) if isinstance(block, UpBlock3d)]
        skips = [block.conv.in_channels for block in encoder]
        deepest = encoder[-1].conv.out_channels
        self.parts = [_parts(block.conv.out_channels, skip) for block, skip in zip(decoder, skips, strict=True)]
        self.deepest = round_up(deepest, CHANNEL_MULTIPLE)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level, (down, up) in enumerate(zip(encoder, decoder, strict=True)):
            bottom = level + 1 == len(encoder)
            room = self.deepest if bottom else self.parts[level + 1][1][1]
            weight, bias = _weights.pad_outputs(_weights.folded(down.conv, down.norm), room)
            down_block = ConvPool((place(weight, 1, self.parts[level][1:]), bias), dtype, winograd=level == 0)
            self.down_blocks.append(down_block)
            below = [(deepest, self.deepest)] if bottom else self.parts[level + 1]
            weight, bias = _weights.pad_outputs(_weights.folded(up.conv, up.norm), self.parts[level][0][1])
            self.up_blocks.append(UpsampleConv((place(weight, 1, below), bias), 2, dtype))
        weight, bias = _weights.folded(baseline.decoder.conv, baseline.decoder.norm)
        weight = place(place(weight, 0, self.parts[0]), 1, self.parts[0])
        self.conv = ConvAct((weight, place(bias, 0, self.parts[0])), RELU, dtype, winograd=True)

    def buffers_for(self, batch: int, size: tuple[int, int, int], like: Tensor) -> list[Tensor]:
        """Fresh buffers of every level for a grid (D, H, W), the deepest last."""
        depth, height, width = size
        rooms = [*(left[1] + right[1] for left, right in self.parts), self.deepest]
        return [like.new_empty(batch, depth, height >> level, width >> level, room) for level, room in enumerate(rooms)]

    def right(self, buffers: list[Tensor], level: int) -> Tensor:
        """The slice of a level's buffer that the encoder's output of that level lies in."""
        return buffers[level][..., self.parts[level][0][1] :] if level < len(self.parts) else buffers[level]

    def forward(self, buffers: list[Tensor]) -> Tensor:
        """Level 0's right slice -> (B, D, H, W, channels of level 0); all buffers are written."""
        levels = len(self.parts)
        for level, block in enumerate(self.down_blocks):
            block(self.right(buffers, level), out=self.right(buffers, level + 1))
        for level in reversed(range(levels)):
            self.up_blocks[level](buffers[level + 1], out=buffers[level][..., : self.parts[level][0][1]])
        return self.conv(buffers[0])


class FusedWarpingNetwork(nn.Module):
    """The warping module W from a baseline's weights, for one compute dtype; the baseline is left as it is.

    Args:
        baseline: in eval mode, float32 parameters; the layers are made on its device.
        dtype: of activations and weights: float16, bfloat16 or float32.
    """

    compress_weight: Tensor
    compress_bias: Tensor

    def __init__(self, baseline: WarpingNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        motion = baseline.dense_motion_network
        self.num_kp = motion.num_kp
        weight, bias = _weights.folded(motion.compress, motion.norm)
        precise = torch.promote_types(dtype, torch.float32)  # once per source: no reason to round
        self.register_buffer("compress_weight", weight.flatten(1).to(precise))  # one voxel a tap: a linear layer
        self.register_buffer("compress_bias", bias.to(precise))
        self.sparse_motion = SparseMotion()
        self.hourglass = FusedHourglass(motion.hourglass, dtype)
        parts = self.hourglass.parts[0]
        weight, bias = _weights.plain(motion.mask)
        self.mask = MaskConv((place(weight, 1, parts), bias), dtype)
        self.occlusion = None
        if motion.occlusion is not None:
            weight, bias = _weights.plain(motion.occlusion)
            depth = weight.shape[1] // motion.hourglass.out_filters
            weight = place(weight.unflatten(1, (-1, depth)), 1, parts).flatten(1, 2)
            self.occlusion = OcclusionHead((weight, bias), depth, dtype)
        self.flow_warp = FlowWarp()
        weight, bias = _weights.folded(baseline.third.conv, baseline.third.norm)
        channels = motion.compress.in_channels
        # flow_warp leaves (H, W, D, C): channel d * C + c where the baseline has c * D + d.
        weight = weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1, 2)
        self.third = ConvAct((weight, bias), LEAKY, dtype)
        self.fourth = ConvAct(_weights.plain(baseline.fourth), 1.0, dtype)

    @torch.no_grad()
    def prepare(self, feature_3d: Tensor) -> WarpSource:
        """What depends on the source alone: feature volume (B, C, D, H, W), float32 -> ``WarpSource``."""
        # Channels-last, a convolution of one tap is a linear layer, and its answer lies as it is wanted.
        feature = _channels_last(feature_3d.to(self.compress_weight.dtype))
        # The sample of the background is taken before the volume it samples is rounded.
        compressed = F.relu(F.linear(feature, self.compress_weight, self.compress_bias))
        parts = feature, compressed, ops.background_sample(compressed)
        return WarpSource(*(part.to(self.dtype) for part in parts))

    @overload
    def forward(
        self, source: WarpSource, kp_source: Tensor, kp_driving: Tensor, want_maps: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def forward(
        self, source: WarpSource, kp_source: Tensor, kp_driving: Tensor, want_maps: Literal[True]
    ) -> WarpResult: ...

    @torch.no_grad()
    def forward(
        self, source: WarpSource, kp_source: Tensor, kp_driving: Tensor, want_maps: bool = False
    ) -> Tensor | WarpResult:
        """The warped feature, and with ``want_maps`` the maps it was made with.

        Args:
            source: of ``prepare``; its batch is 1 or that of the keypoints.
            kp_source: (1 or B, K, 3) float32, normalised coordinates.
            kp_driving: (B, K, 3) float32.

        Returns:
            (B, H, W, 4 * block_expansion), channels-last, in the network's dtype; or a ``WarpResult``.
        """
        batch = kp_driving.shape[0]
        kp_source, kp_driving = kp_source.expand(batch, -1, -1).contiguous(), kp_driving.contiguous()
        size = (source.volume.shape[1], source.volume.shape[2], source.volume.shape[3])
        buffers = self.hourglass.buffers_for(batch, size, source.volume)
        compressed, background = _unexpanded(source.compressed), _unexpanded(source.background)
        self.sparse_motion(compressed, background, kp_source, kp_driving, out=self.hourglass.right(buffers, 0))
        prediction = self.hourglass(buffers)

        volume = source.volume.permute(0, 4, 1, 2, 3).expand(batch, -1, -1, -1, -1)
        warped, deformation = self.flow_warp(self.mask(prediction), kp_source, kp_driving, volume, want_maps)
        flat = warped.permute(0, 3, 4, 2, 1).flatten(3)  # (B, H, W, D * C): as flow_warp left it, no copy
        occlusion_map = None if self.occlusion is None else self.occlusion(prediction)
        out = self.fourth(self.third(flat), gain=occlusion_map)
        return WarpResult(out, occlusion_map, deformation) if want_maps else out


def _channels_last(volume: Tensor) -> Tensor:
    """(B, C, D, H, W) as (B, D, H, W, C), contiguous."""
    return volume.permute(0, 2, 3, 4, 1).contiguous()


def _parts(left: int, right: int) -> list[tuple[int, int]]:
    """(channels, padded channels) of a level's two parts: the first 16-byte aligned, the sum a multiple of 16."""
    room = round_up(left, PART_MULTIPLE)
    return [(left, room), (right, round_up(room + right, CHANNEL_MULTIPLE) - room)]


def _unexpanded(tensor: Tensor) -> Tensor:
    """Batch 1 of a tensor that was expanded over the batch: the ops read that for all."""
    return tensor[:1] if tensor.shape[0] > 1 and tensor.stride(0) == 0 else tensor
