"""The plain PyTorch truth of every op: one file per op, differentiable, in float32 or float64."""

from lpkernels.ref.flow_warp import flow_warp
from lpkernels.ref.mask_conv3d import mask_conv3d, mask_conv3d_in

__all__ = ["flow_warp", "mask_conv3d", "mask_conv3d_in"]
