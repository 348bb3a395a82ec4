"""Skips what this machine cannot run, with the reason, and the fixtures every test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN (integers: their maximum), so that an output nobody wrote fails the test."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def _fp32_is_fp32() -> Iterator[None]:
    """By default cuDNN may round FP32 convolutions to TF32: not where they are the truth."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton kernels run in Triton's interpreter, on CPU tensors; on a GPU machine they are tested compiled."""
    if torch.cuda.is_available():
        pytest.skip("Triton kernels are compiled on this machine: their gpu tests run")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # torch has imported triton by now: the functions of triton.language that are written in Triton are compiled ones.
    language = pytest.importorskip("triton.language")
    interpreter, jit = pytest.importorskip("triton.runtime.interpreter"), pytest.importorskip("triton.runtime.jit")
    for module in (language, language.standard):
        for name, value in vars(module).copy().items():
            if isinstance(value, jit.JITFunction):
                monkeypatch.setattr(module, name, interpreter.InterpretedFunction(value.fn))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device this machine may have; the CUDA half is marked ``gpu``."""
    return str(request.param)
