"""What the tests of the convolution ops share: random tensors, slices of wider buffers, exact copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lpkernels import ops
from tests.ops import contract

HALVES = [torch.float16, torch.bfloat16]
GPU_BACKENDS = ["cuda", "triton", "torch"]


def normal(*size: int, seed: int, scale: float = 1.0) -> Tensor:
    """Float32 on the CPU, whatever the device: the same values everywhere."""
    return scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def conv_weight(outputs: int, channels: int, *taps: int, seed: int = 1) -> Tensor:
    """(O, C, taps...) whose answers to normal activations are about normal."""
    return normal(outputs, channels, *taps, seed=seed, scale=(channels * torch.Size(taps).numel()) ** -0.5)


def sliced(tensor: Tensor, before: int = 8, after: int = 16) -> tuple[Tensor, Tensor]:
    """The same values as a slice of channels of a wider buffer that holds NaN elsewhere; and that buffer."""
    buffer = tensor.new_full((*tensor.shape[:-1], before + tensor.shape[-1] + after), float("nan"))
    view = buffer[..., before : before + tensor.shape[-1]]
    view.copy_(tensor)
    return view, buffer


def assert_untouched(buffer: Tensor, view: Tensor) -> None:
    """Everything of ``buffer`` but ``view``, which was written, is still NaN."""
    assert not view.isnan().any()
    assert int(buffer.isnan().sum()) == buffer.numel() - view.numel()


def exact(inputs: Sequence[Any]) -> list[Any]:
    return [value.double() if isinstance(value, Tensor) else value for value in inputs]


def assert_within_pytorchs_own_error(
    op: Callable[..., Any], ref: Callable[..., Any], inputs: Sequence[Any], backend: str
) -> None:
    """``op`` with ``backend`` errs at most 1.5 times as much as with backend torch, plus a few ulp; on the GPU."""
    truths = ref(*exact(inputs))
    with ops.use_backend("torch"):
        owns = op(*inputs)
    with ops.use_backend(backend):
        actuals = op(*inputs)
    for actual, own, truth in zip(actuals, owns, truths, strict=True):
        assert actual.shape == truth.shape
        bound = 1.5 * contract.relative_error(own, truth) + contract.ULPS[actual.dtype]
        assert contract.relative_error(actual, truth) <= bound


def skip_reason(name: str, backend: str, inputs: Sequence[Any]) -> str | None:
    """Why ``backend`` cannot take this call on the GPU."""
    chosen = ops.registry()[name].backends[backend]
    signature = tuple((tuple(value.shape), value.dtype) for value in inputs if isinstance(value, Tensor))
    return chosen.why_not("cuda") or chosen.refuses(signature)
