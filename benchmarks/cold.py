"""``python -m benchmarks.cold CONFIG DEVICE TECHNIQUES``: the first frames of a fresh process, as JSON on stdout.

What a timer shows that starts at the very first call, and one that never waits for the device.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from benchmarks import frame
from benchmarks.harness import MEBIBYTE
from benchmarks.providers import BASELINES
from benchmarks.work import relative_error
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait

WARM_CALLS = 20


def measure(config: str, device: torch.device, provider: str) -> dict[str, Any]:
    """Milliseconds of preparing the source, of the first frame, of later ones, and of later ones without waiting.

    Preparing is the first use of every library in the process. Also the peak in MiB, and the error.
    """
    model = LivePortrait.random(seed=0, config=LivePortraitConfig.named(config), device=device)
    inputs = frame.driving(model.config.image_size, 1, 0, device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    call = frame.build(model, BASELINES[provider], device).call
    wait()
    prepare = (time.perf_counter() - start) * 1e3

    def milliseconds(waiting: bool) -> float:
        start = time.perf_counter()
        call(*inputs)
        if waiting:
            wait()
        return (time.perf_counter() - start) * 1e3

    with torch.no_grad():
        first = milliseconds(waiting=True)
        warm = sorted(milliseconds(waiting=True) for _ in range(WARM_CALLS))[WARM_CALLS // 2]
        unwaited = sorted(milliseconds(waiting=False) for _ in range(WARM_CALLS))[WARM_CALLS // 2]
        wait()
        peak = torch.cuda.max_memory_allocated(device) / MEBIBYTE if device.type == "cuda" else None
        error = relative_error(call(*inputs).float(), frame.reference(model, device)(*inputs).float())
    times = {"prepare_ms": prepare, "first_ms": first, "warm_ms": warm, "unwaited_ms": unwaited}
    return {**times, "peak_mb": peak, "relative_error": error}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], torch.device(sys.argv[2]), sys.argv[3])))
