"""What the ops of the motion extractor share: two of their backends, what kernels refuse, checks of their inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels.ops import _conv
from lpkernels.ops._op import Backend, Signature, reference, why_not_hopper

VECTOR = 8  # halves in 16 bytes


def activation(name: str, tensor: object) -> Tensor:
    """A channels-last activation (B, H, W, C), checked and contiguous: copied where it is a slice of a wider buffer."""
    return _conv.activation(name, tensor, 4).contiguous()


def no_tensor_cores(signature: Signature) -> str | None:
    """Why a matrix product in Triton is not the one to take on the current GPU."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "Triton has no tensor-core products for GPUs before compute capability 8.0; PyTorch has"
    return None


def no_hopper() -> str | None:
    """Why kernels made for Hopper alone cannot run on the current GPU."""
    return why_not_hopper() if torch.cuda.is_available() else None


def cuda_refuses(most: int, weight: int = 3, multiple: int = VECTOR) -> Callable[[Signature], str | None]:
    """Why the CUDA kernel of a call whose first tensor is x and whose number ``weight`` is (N, ..., K) cannot take it.

    N is to be a multiple of ``multiple``.
    """

    def refuses(signature: Signature) -> str | None:
        dtype, (outputs, *_, channels) = signature[0][1], signature[weight][0]
        if dtype == torch.float16 and channels % VECTOR == 0 and outputs % multiple == 0 and channels <= most:
            return None
        wanted = (
            f"made for float16, channels in multiples of {VECTOR}, at most {most}, outputs in multiples of {multiple}"
        )
        return f"{wanted}; got {dtype}, {channels}, {outputs}"

    return refuses


def plain(function: Callable[..., Tensor], like: int = 0) -> tuple[Backend, Backend]:
    """Backends ``torch`` and ``ref`` of ``function(compute, *args)``, whose answer gets the dtype of ``args[like]``."""

    def torch_run(*args: Tensor) -> Tensor:
        dtype = args[like].dtype
        return function(dtype, *args).to(dtype).contiguous()

    def reference_run(*args: Tensor) -> Tensor:
        return function(torch.float32, *args).to(args[like].dtype).contiguous()

    return Backend("torch", _conv.torch_why_not, torch_run), reference(reference_run)
