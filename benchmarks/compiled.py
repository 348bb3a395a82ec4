"""torch.compile under watch: whether it compiled what it was given, and whether its CUDA graphs were used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.utils import counters

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_SKIP_LOGGERS = ("torch._inductor.cudagraph_utils", "torch._inductor.cudagraph_utils.__cudagraphs")


class CompileWatch:
    """Reads dynamo's and inductor's own counters from its creation to its first verdict.

    Build one right before ``torch.compile`` and ask right after the warm-up: the counters are global, so nothing else
    may compile between. The verdict is kept.
    """

    def __init__(self, mode: str | None) -> None:
        self._mode = mode
        self._before = _snapshot()
        self._messages = _Messages()
        self._delta: Counter[str] | None = None

    def _counted(self) -> Counter[str]:
        if self._delta is None:
            after = _snapshot()
            after.subtract(self._before)
            self._delta = after
            self._messages.close()
        return self._delta

    def fell_back(self) -> str | None:
        """Why the compiled code is not what its name promises, or None."""
        delta = self._counted()
        if not delta["graphs"]:
            return "torch.compile compiled nothing: the code ran eagerly"
        if failed := delta["frames"] - delta["frames ok"]:
            return f"{failed} of {delta['frames']} frames did not compile and ran eagerly"
        if self._mode in CUDA_GRAPH_MODES and delta["CUDA graph skips"]:
            reasons = "; ".join(self._messages.texts) or "no reason was logged"
            return f"inductor skipped CUDA graphs {delta['CUDA graph skips']} times: {reasons}"[:300]
        return None

    def extras(self) -> dict[str, Any]:
        """Graphs and graph breaks, for the record."""
        delta = self._counted()
        return {"compiled_graphs": delta["graphs"], "graph_breaks": delta["graph breaks"]}


def compile_watched(call: Callable[..., Any], mode: str, backend: str = "inductor") -> tuple[Any, CompileWatch]:
    """``torch.compile(call, mode=mode)`` for fixed shapes, with its watch."""
    watch = CompileWatch(mode)
    options: dict[str, Any] = {"mode": mode} if backend == "inductor" else {}
    return torch.compile(call, dynamic=False, backend=backend, **options), watch


def new_step(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Mark each call as a new step, so that CUDA graphs may overwrite the last call's outputs, as in a frame loop."""

    def call(*inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs)

    return call


def forget() -> None:
    """Drop all compiled code: the next subject's shapes would else count as recompilations of this one's."""
    torch._dynamo.reset()


def _snapshot() -> Counter[str]:
    return Counter(
        {
            "graphs": counters["stats"]["unique_graphs"],
            "frames": counters["frames"]["total"],
            "frames ok": counters["frames"]["ok"],
            "graph breaks": sum(counters["graph_break"].values()),
            "CUDA graph skips": counters["inductor"]["cudagraph_skips"],
        }
    )


class _Messages(logging.Handler):
    """Inductor's reasons for skipping CUDA graphs, which it only logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        for name in _SKIP_LOGGERS:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().splitlines()[0]
        if "skipping cudagraphs" in text and text not in self.texts:
            self.texts.append(text)

    def close(self) -> None:
        for name in _SKIP_LOGGERS:
            logging.getLogger(name).removeHandler(self)
        super().close()
