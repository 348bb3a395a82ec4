"""What every op must hold, whatever it computes: called by each op's test file with its own inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

Inputs = Sequence[Tensor]
Function = Callable[..., tuple[Tensor, ...]]

ULPS = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 8e-4}


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """||actual - exact|| / ||exact|| in float64; NaN never passes a comparison."""
    exact = exact.double().cpu()
    return ((actual.double().cpu() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def assert_close_to_reference(op: Function, ref: Function, inputs: Inputs, exact_inputs: Inputs) -> None:
    """Error against float64 at most 1.5 times that of PyTorch's own arithmetic on the same inputs, plus a few ulp."""
    exact, own = ref(*exact_inputs), ref(*[tensor.cpu() for tensor in inputs])
    for actual, pytorch, truth in zip(op(*inputs), own, exact, strict=True):
        assert actual.shape == truth.shape
        bound = 1.5 * relative_error(pytorch, truth) + ULPS[actual.dtype]
        assert relative_error(actual, truth) <= bound


def strided(tensor: Tensor) -> Tensor:
    """The same values behind strides that are neither contiguous nor dense, with NaN in between."""
    shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
    holder = torch.full(shape, float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = holder.transpose(0, 1).contiguous().transpose(0, 1)[..., ::2]
    view.copy_(tensor)
    assert not view.is_contiguous()
    return view


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def check_opcheck(packet: Any, inputs: Inputs) -> None:
    torch.library.opcheck(packet.default, tuple(inputs))


def check_compile(op: Function, inputs: Inputs) -> None:
    """One graph, no break, the eager answer."""
    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert_same(compiled(*inputs), op(*inputs))


def check_export(op: Function, inputs: Inputs, name: str) -> None:
    """The exported graph holds the op itself, not its decomposition."""

    class Module(torch.nn.Module):
        def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
            return op(*args)

    program = torch.export.export(Module(), tuple(inputs))
    assert name in str(program.graph)
    assert_same(program.module()(*inputs), op(*inputs))


def check_repeatable(op: Function, inputs: Inputs, times: int = 100) -> None:
    first = op(*inputs)
    for _ in range(times):
        assert_same(op(*inputs), first)


def check_second_stream(op: Function, inputs: Inputs) -> None:
    """Work queued on another stream is read and written there, in order: inputs are made on it just before."""
    expected = op(*inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = [tensor.clone() for tensor in inputs]
        actual = op(*late)
    stream.synchronize()
    assert_same(actual, expected)


def check_graph_capture(op: Function, inputs: Inputs, change: Callable[[Inputs], None]) -> None:
    """A captured call, replayed on new values in the same memory, answers for the new values."""
    op(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = op(*inputs)
    change(inputs)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(outputs, op(*inputs))


def check_second_device(op: Function, inputs: Inputs) -> None:
    """Tensors on the second GPU while the first is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    expected = op(*[tensor.to("cuda:0") for tensor in inputs])
    actual = op(*[tensor.to("cuda:1") for tensor in inputs])
    assert all(tensor.device.index == 1 for tensor in actual)
    assert_same([tensor.cpu() for tensor in actual], [tensor.cpu() for tensor in expected])
