"""The plain PyTorch truth of every op: one file per op, differentiable, in float32 or float64."""

from lpkernels.ref.conv_act import channel_parts, channel_stats, conv_act, conv_act_in, stats_like, whole_stats
from lpkernels.ref.conv_img import conv_img, conv_img_in
from lpkernels.ref.conv_pool import conv_pool, conv_pool_in
from lpkernels.ref.conv_spade import conv_spade, conv_spade_in
from lpkernels.ref.convnext_stage import convnext_stage, convnext_stage_in
from lpkernels.ref.depthwise_linear import depthwise_linear, depthwise_linear_in, tile_count, tile_height
from lpkernels.ref.flow_warp import flow_warp
from lpkernels.ref.grn_linear import grn_linear, grn_linear_in
from lpkernels.ref.instance_norm_stats import instance_norm_stats
from lpkernels.ref.keypoint_transform import keypoint_transform
from lpkernels.ref.mask_conv3d import mask_conv3d, mask_conv3d_in
from lpkernels.ref.norm_downsample import norm_downsample, norm_downsample_in
from lpkernels.ref.occlusion_head import occlusion_head, occlusion_head_in
from lpkernels.ref.paste_back import paste_back, warp_affine
from lpkernels.ref.patch_norm import patch_norm, patch_norm_in
from lpkernels.ref.pool_norm_linear import pool_norm_linear
from lpkernels.ref.spade_blocks import spade_blocks, spade_blocks_in
from lpkernels.ref.spade_conv import spade_conv, spade_conv_in
from lpkernels.ref.spade_shortcut import spade_shortcut, spade_shortcut_in
from lpkernels.ref.sparse_motion import background_sample, sparse_motion
from lpkernels.ref.stitch_mlp import stitch_mlp
from lpkernels.ref.upsample_conv import upsample_conv, upsample_conv_in

__all__ = [
    "background_sample",
    "channel_parts",
    "channel_stats",
    "conv_act",
    "conv_act_in",
    "conv_img",
    "conv_img_in",
    "conv_pool",
    "conv_pool_in",
    "conv_spade",
    "conv_spade_in",
    "convnext_stage",
    "convnext_stage_in",
    "depthwise_linear",
    "depthwise_linear_in",
    "flow_warp",
    "grn_linear",
    "grn_linear_in",
    "instance_norm_stats",
    "keypoint_transform",
    "mask_conv3d",
    "mask_conv3d_in",
    "norm_downsample",
    "norm_downsample_in",
    "occlusion_head",
    "occlusion_head_in",
    "paste_back",
    "patch_norm",
    "patch_norm_in",
    "pool_norm_linear",
    "spade_blocks",
    "spade_blocks_in",
    "spade_conv",
    "spade_conv_in",
    "spade_shortcut",
    "spade_shortcut_in",
    "sparse_motion",
    "stats_like",
    "stitch_mlp",
    "tile_count",
    "tile_height",
    "upsample_conv",
    "upsample_conv_in",
    "warp_affine",
    "whole_stats",
]
