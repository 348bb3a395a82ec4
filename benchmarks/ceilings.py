"""What the machine can do, measured in the same run: a large copy and large matrix products on random data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import one_line, strict_fp32
from benchmarks.timing import EventSampler, Sampler, WallSampler, quantile

COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}
MATRIX = {"cuda": 8192, "cpu": 1024}
REPEATS = {"cuda": 20, "cpu": 5}


def measure(device: torch.device) -> dict[str, float | str]:
    """``copy_gbps`` and ``<precision>_tflops``; where one cannot run, ``<precision>_missing`` holds the reason."""
    sampler: Sampler = EventSampler(device) if device.type == "cuda" else WallSampler()
    results: dict[str, float | str] = {"copy_gbps": _copy(device, sampler)}
    for precision, make in PRODUCTS.items():
        try:
            results[f"{precision}_tflops"] = _product(make, device, sampler)
        except Exception as error:  # this precision has no matrix unit or no kernel here: say so, go on
            results[f"{precision}_missing"] = one_line(error)
    return results


def _median_ms(call: Callable[[], object], device: torch.device, sampler: Sampler) -> float:
    sample = sampler.prepare(call, [()])
    for _ in range(3):
        sample(0)
    return quantile([sample(0) for _ in range(REPEATS[device.type])], 0.5)


def _copy(device: torch.device, sampler: Sampler) -> float:
    source = torch.randn(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _median_ms(lambda: target.copy_(source), device, sampler) / 1e6


def _product(
    make: Callable[[int, torch.device], Callable[[], Tensor]], device: torch.device, sampler: Sampler
) -> float:
    size = MATRIX[device.type]
    return 2 * size**3 / _median_ms(make(size, device), device, sampler) / 1e9


def _float(dtype: torch.dtype, tf32: bool = False) -> Callable[[int, torch.device], Callable[[], Tensor]]:
    def make(size: int, device: torch.device) -> Callable[[], Tensor]:
        if dtype != torch.float32 or tf32:
            _need_cuda(device)
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

        def product() -> Tensor:
            with strict_fp32():
                torch.backends.cuda.matmul.allow_tf32 = tf32
                return left @ right

        return product

    return make


def _fp8(size: int, device: torch.device) -> Callable[[], Tensor]:
    _need_cuda(device)
    left, right = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _int8(size: int, device: torch.device) -> Callable[[], Tensor]:
    _need_cuda(device)
    left, right = (torch.randint(-127, 128, (size, size), device=device, dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(left, right.t())


def _need_cuda(device: torch.device) -> None:
    if device.type != "cuda":
        raise RuntimeError("measured on a CUDA device only")


PRODUCTS: dict[str, Callable[[int, torch.device], Callable[[], Tensor]]] = {
    "fp32": _float(torch.float32),
    "tf32": _float(torch.float32, tf32=True),
    "fp16": _float(torch.float16),
    "bf16": _float(torch.bfloat16),
    "fp8": _fp8,
    "int8": _int8,
}
