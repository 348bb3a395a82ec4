"""The ops: one file each, with its schema, argument checks, fake kernel and choice of backend.

Weights are taken for constants: on Hopper a kernel fetches them while the one before it still runs. What another of
these ops has just written is no weight; wait for the stream in between (``torch.cuda.current_stream().synchronize()``).
"""

from lpkernels.ops._conv import pack_class_weight
from lpkernels.ops._op import Backend, Choice, Op, registry, requested_backends, use_backend
from lpkernels.ops._winograd_weight import pack_winograd_weight, packs_together, takes_winograd
from lpkernels.ops.conv_act import conv_act, pack_conv_weight, stat_parts
from lpkernels.ops.conv_img import conv_img
from lpkernels.ops.conv_pool import conv_pool
from lpkernels.ops.conv_spade import conv_spade
from lpkernels.ops.convnext_stage import convnext_stage
from lpkernels.ops.depthwise_linear import depthwise_linear
from lpkernels.ops.flow_warp import flow_warp
from lpkernels.ops.grn_linear import grn_linear
from lpkernels.ops.instance_norm_stats import instance_norm_stats
from lpkernels.ops.keypoint_transform import keypoint_transform, pack_motion, unpack_motion
from lpkernels.ops.mask_conv3d import (
    mask_conv3d,
    pack_mask_row_pairs,
    pack_mask_weight,
    padded_channels,
    pairs_rows,
)
from lpkernels.ops.norm_downsample import norm_downsample
from lpkernels.ops.occlusion_head import occlusion_head, pack_occlusion_weight
from lpkernels.ops.paste_back import paste_back, warp_mask
from lpkernels.ops.patch_norm import patch_norm
from lpkernels.ops.pool_norm_linear import pool_norm_linear
from lpkernels.ops.spade_blocks import spade_blocks
from lpkernels.ops.spade_conv import pack_gamma_weight, pack_spade_weight, spade_conv
from lpkernels.ops.spade_shortcut import fuses_shortcut, pack_shortcut_weight, spade_shortcut
from lpkernels.ops.sparse_motion import background_sample, sparse_motion
from lpkernels.ops.stitch_mlp import pack_mlp, stitch_mlp
from lpkernels.ops.upsample_conv import (
    pack_upsample_products,
    pack_upsample_weight,
    shares_products,
    upsample_conv,
)

__all__ = [
    "Backend",
    "Choice",
    "Op",
    "background_sample",
    "conv_act",
    "conv_img",
    "conv_pool",
    "conv_spade",
    "convnext_stage",
    "depthwise_linear",
    "flow_warp",
    "fuses_shortcut",
    "grn_linear",
    "instance_norm_stats",
    "keypoint_transform",
    "mask_conv3d",
    "norm_downsample",
    "occlusion_head",
    "pack_class_weight",
    "pack_conv_weight",
    "pack_gamma_weight",
    "pack_mask_row_pairs",
    "pack_mask_weight",
    "pack_mlp",
    "pack_motion",
    "pack_occlusion_weight",
    "pack_shortcut_weight",
    "pack_spade_weight",
    "pack_upsample_products",
    "pack_upsample_weight",
    "pack_winograd_weight",
    "packs_together",
    "padded_channels",
    "pairs_rows",
    "paste_back",
    "patch_norm",
    "pool_norm_linear",
    "registry",
    "requested_backends",
    "shares_products",
    "spade_blocks",
    "spade_conv",
    "spade_shortcut",
    "sparse_motion",
    "stat_parts",
    "stitch_mlp",
    "takes_winograd",
    "unpack_motion",
    "upsample_conv",
    "use_backend",
    "warp_mask",
]
