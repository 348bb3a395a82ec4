"""``python -m benchmarks.warm_start WEIGHTS DEVICE PRECISION``: what a program waits for, as JSON on stdout.

Every part ends with a result on the host. Nothing is imported before the clock starts but the standard library.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

PARTS = ("import", "load", "optimize", "source", "first_frame", "next_frame")
WARM_CALLS = 20


def measure(weights: str, device: str, precision: str) -> dict[str, Any]:
    """Milliseconds of each of ``PARTS`` and of a ``warm_frame``; MiB on the GPU while loading and at its frames; the
    error."""
    times: dict[str, float] = {}

    def timed(part: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        answer = call()
        wait()
        times[f"{part}_ms"] = (time.perf_counter() - start) * 1e3
        return answer

    def wait() -> None:
        import torch

        if torch.cuda.is_initialized():  # which is a part of loading, not of importing
            torch.cuda.synchronize(device)

    def import_all() -> None:
        import lpkernels

        _ = lpkernels.LivePortrait, lpkernels.Animator, lpkernels.optimize

    timed("import", import_all)
    import torch

    import lpkernels
    from lpkernels.animate.portrait import draw_portrait, driving_frames

    published = timed("load", lambda: lpkernels.LivePortrait.from_pretrained(weights, device=device))
    size = published.config.image_size
    source, frames = draw_portrait(size), list(driving_frames(3, size))
    model = timed("optimize", partial(lpkernels.optimize, published, precision))
    del published  # as a program would: it is not needed any more
    loading = _peak(device)
    animator = timed("source", lambda: lpkernels.Animator(model, source))
    timed("first_frame", lambda: animator.step(frames[0]))
    last = timed("next_frame", lambda: animator.step(frames[1]))
    warm = []
    for _ in range(WARM_CALLS):
        last = timed("warm_frame", lambda: animator.step(frames[2]))
        warm.append(times["warm_frame_ms"])
    times["warm_frame_ms"] = sorted(warm)[WARM_CALLS // 2]
    memory = {"loading_mb": loading, "peak_mb": _peak(device)}

    from benchmarks.harness import strict_fp32
    from benchmarks.work import relative_error

    with strict_fp32():
        exact = lpkernels.Animator(lpkernels.LivePortrait.from_pretrained(weights, device=device), source)
        exact.step(frames[0])
        truth = exact.step(frames[2])
    error = relative_error(torch.from_numpy(last).float(), torch.from_numpy(truth).float())
    return {**times, **memory, "relative_error": error}


def _peak(device: str) -> float | None:
    """The peak since the last call in MiB, of live tensors."""
    import torch

    if device == "cpu":
        return None
    peak = torch.cuda.max_memory_allocated(device) / (1 << 20)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
