"""The memory that a long run holds, at moments of it: of the process on the host, and of the GPU."""

from __future__ import annotations

import torch

from lpkernels.cli._live_report import host_mib

MEBIBYTE = 1 << 20
Sample = dict[str, float]
"""Name -> MiB, as ``read`` gives it."""


def read(device: torch.device) -> Sample:
    """MiB in use now: ``host_mb``, resident pages of the process, where /proc tells; on a GPU also ``allocated_mb`` and
    ``reserved_mb`` of PyTorch's allocator, and ``device_mb``: what ``cudaMemGetInfo`` has no longer free, whoever
    holds it. Quick, and without waiting for the device: a run that goes on is not held up."""
    found: Sample = {}
    if (host := host_mib()) is not None:
        found["host_mb"] = host
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["allocated_mb"] = torch.cuda.memory_allocated(device) / MEBIBYTE
        found["reserved_mb"] = torch.cuda.memory_reserved(device) / MEBIBYTE
        found["device_mb"] = (total - free) / MEBIBYTE
    return found


def growth(earlier: Sample, later: Sample) -> Sample:
    """What grew between two samples, MiB; negative for what shrank."""
    return {name: later[name] - value for name, value in earlier.items() if name in later}
