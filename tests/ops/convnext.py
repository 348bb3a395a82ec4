"""What the tests of the motion extractor's ops share: random inputs, half precision's error against PyTorch's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lpkernels import ops
from lpkernels.ops._op import Signature
from tests.ops import contract

STAGES = [(64, 64, 96), (32, 32, 192), (16, 16, 384), (8, 8, 768)]  # height, width, channels of the published model
GPU_BACKENDS = ("cuda", "triton")
Plain = Callable[..., Any]


class Random:
    """Tensors from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale


def lowered(tensors: Sequence[Tensor], indices: Sequence[int], dtype: torch.dtype, device: str) -> list[Tensor]:
    """Activations and weights (``indices``) in ``dtype``, the rest as it is, all on ``device``."""
    return [tensor.to(device, dtype if index in indices else None) for index, tensor in enumerate(tensors)]


def exact(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double().cpu() if tensor.is_floating_point() else tensor.cpu() for tensor in inputs]


def listed(answer: Any) -> list[Tensor]:
    return [answer] if isinstance(answer, Tensor) else list(answer)


def tupled(function: Callable[..., Any]) -> contract.Function:
    """An op or reference as the contract takes it."""
    return lambda *inputs: tuple(listed(function(*inputs)))


def signature(tensors: Sequence[Tensor]) -> Signature:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


@contextlib.contextmanager
def only(op: str, backend: str, inputs: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block ``backend`` alone may run; the test is skipped where it cannot take ``inputs``."""
    with ops.use_backend(backend):
        choice = ops.registry()[op].choose(inputs[0].device.type, signature(inputs))
        if choice.backend is None:
            pytest.skip(choice.passed[backend])
        yield


def check_half(op: Plain, plain: Plain, inputs: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Error at most 1.5 times that of ``plain`` in ``dtype``, PyTorch's own kernels, plus a few ulp."""
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    truths, own = listed(plain(torch.float64, *wide)), listed(plain(dtype, *inputs))
    for actual, pytorch, truth in zip(listed(op(*inputs)), own, truths, strict=True):
        assert actual.shape == truth.shape
        bound = 1.5 * contract.relative_error(pytorch, truth) + contract.ULPS[dtype]
        assert contract.relative_error(actual, truth) <= bound


def check_triton(op: Plain, inputs: Sequence[Tensor], packet: Any) -> None:
    """The Triton kernel as an op of its own, and as the backend of a compiled graph."""
    contract.check_opcheck(packet, inputs)
    with ops.use_backend("triton"):
        contract.check_compile(tupled(op), inputs)


def check_gpu(op: Plain, inputs: Sequence[Tensor], change: int = 0) -> None:
    """Repeatable, in order on another stream, right when replayed from a graph on new values of input ``change``."""
    function = tupled(op)
    contract.check_repeatable(function, inputs, times=20)
    contract.check_second_stream(function, inputs)

    def halve(held: contract.Inputs) -> None:
        held[change].mul_(-0.5)

    contract.check_graph_capture(function, inputs, halve)


def check_gradient_is_refused(op: Plain, inputs: Sequence[Tensor], name: str) -> None:
    with pytest.raises(RuntimeError, match=f"{name} has no gradient"):
        op(*[tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs])
