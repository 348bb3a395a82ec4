"""What a baseline shows in a fresh process: its first frame, a warm one, and one that is not waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.context import Context
from benchmarks.environment import ROOT
from benchmarks.harness import TOLERANCE_FLOOR
from benchmarks.providers import BASELINES
from benchmarks.work import Measurement

PROVIDERS = {"cuda": ("baseline-fp32", "baseline-amp"), "cpu": ("baseline-fp32",)}
TIMEOUT_S = 300


def measure(context: Context) -> Iterator[list[Measurement]]:
    """One fresh process per provider; the time of record is the first frame's."""
    for name in PROVIDERS[context.device.type]:
        if not context.options.selected(name):
            continue
        context.progress(f"fresh process: {name}")
        precision = BASELINES[name].works_in(context.device)
        result = Measurement("claim", "first frame", "a fresh process", 1, name, precision, "ok")
        try:
            facts = fresh_process(context.options.config, str(context.device), name)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            result.status, result.reason = "skipped", f"the fresh process failed: {error}"[:300]
        else:
            result.relative_error, result.tolerance = facts["relative_error"], TOLERANCE_FLOOR[precision]
            first = facts["first_ms"]
            result.median_ms = result.p20_ms = result.p80_ms = result.p99_ms = first
            result.samples, result.timing, result.peak_mb = 1, "wall clock", facts["peak_mb"]
            result.extras = {key: facts[key] for key in ("prepare_ms", "warm_ms", "unwaited_ms")}
        yield [result]


def fresh_process(*arguments: str, program: str = "benchmarks.cold", **environment: str) -> dict[str, Any]:
    """What ``python -m program arguments`` prints as JSON in its last line. Raises SubprocessError, ValueError."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **environment, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ValueError(f"exit code {done.returncode}: {last[0]}")
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts
