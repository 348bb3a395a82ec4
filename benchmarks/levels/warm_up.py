"""From ``import lpkernels`` to the first fast frame in a fresh process, Triton's cache of kernels cold and warm."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.context import Context
from benchmarks.harness import TOLERANCE_FLOOR
from benchmarks.levels.claim import fresh_process
from benchmarks.levels.frame import EIGHT_BIT_FLOOR
from benchmarks.own import FORMS
from benchmarks.warm_start import PARTS
from benchmarks.work import Measurement

PROVIDER = {"cuda": "lpkernels-fp16", "cpu": "lpkernels-fp32"}
CACHES = {"cuda": ("cold", "warm"), "cpu": ("unused",)}


def measure(context: Context) -> Iterator[list[Measurement]]:
    """One fresh process for each state of the cache; the time of record is the sum of its parts, kept as extras."""
    name = PROVIDER[context.device.type]
    if not context.options.selected(name):
        return
    form = FORMS[name]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(context.options.weights or Path(folder) / "weights")
        if context.options.weights is None:
            context.model.save_pretrained(weights)
        cache = str(Path(folder) / "triton")
        for state in CACHES[context.device.type]:
            context.progress(f"fresh process: {name}, Triton's cache {state}")
            precision = form.works_in(context.device)
            shape = f"a fresh process, Triton's cache {state}"
            result = Measurement("warm-up", "first fast frame", shape, 1, name, precision, "ok")
            try:
                facts = fresh_process(
                    str(weights),
                    str(context.device),
                    form.precision,
                    program="benchmarks.warm_start",
                    TRITON_CACHE_DIR=cache,
                )
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                result.status, result.reason = "skipped", f"the fresh process failed: {error}"[:300]
            else:
                total = sum(facts[f"{part}_ms"] for part in PARTS)
                result.median_ms = result.p20_ms = result.p80_ms = result.p99_ms = total
                result.samples, result.timing, result.peak_mb = 1, "wall clock", facts.pop("peak_mb")
                result.relative_error = facts.pop("relative_error")
                result.tolerance = max(TOLERANCE_FLOOR[precision], EIGHT_BIT_FLOOR)
                result.extras = facts
            yield [result]
