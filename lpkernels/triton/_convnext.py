"""What the kernels of the motion extractor share: the norms' epsilon, and launches that overlap.

The extractor is some sixty kernels of two or three microseconds in a row, so the pause between two of them counts. On
Hopper and later a kernel may be launched while its predecessor still runs (programmatic dependent launch): it starts,
computes its indices and waits in ``after_previous`` until the predecessor has finished and its writes can be seen. No
kernel reads or writes global memory before that, so the order of the stream holds, inside CUDA graphs too.
``LPKERNELS_NO_HOPPER=1`` switches it off, to see what it gives.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import cuda

from lpkernels.ops._op import NO_HOPPER

EPSILON = tl.constexpr(1e-6)


@triton.jit
def after_previous(OVERLAP: tl.constexpr):
    """Wait for the kernel before this one, then let the one after it be launched."""
    if OVERLAP:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()


def overlap(tensor: Tensor) -> dict[str, Any]:
    """The arguments of a launch whose kernel begins with ``after_previous``."""
    able = tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (9, 0)
    if able and os.environ.get(NO_HOPPER) != "1":
        return {"OVERLAP": True, "launch_pdl": True}
    return {"OVERLAP": False}
