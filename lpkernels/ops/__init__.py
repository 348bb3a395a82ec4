"""The ops: one file each, with its schema, argument checks, fake kernel and choice of backend."""

from lpkernels.ops._op import Backend, Choice, Op, registry, requested_backends, use_backend
from lpkernels.ops.flow_warp import flow_warp
from lpkernels.ops.mask_conv3d import mask_conv3d, pack_mask_weight, padded_channels

__all__ = [
    "Backend",
    "Choice",
    "Op",
    "flow_warp",
    "mask_conv3d",
    "pack_mask_weight",
    "padded_channels",
    "registry",
    "requested_backends",
    "use_backend",
]
