"""A progress bar for the callbacks ``progress(done, total)`` of the engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a callback that shows ``done`` of ``total`` frames (None: unknown) on stderr; nothing when ``quiet``."""
    from tqdm import tqdm

    shown: list[tqdm] = []

    def update(done: int, total: int | None) -> None:
        if not shown:  # not before the first frame: an error until then is one line, without a bar
            # A log keeps every refresh as a line of its own: a terminal gets many, a file few.
            interval = 0.1 if sys.stderr.isatty() else 5.0
            shown.append(tqdm(desc=title, total=total, unit="frame", mininterval=interval, dynamic_ncols=True))
        shown[0].update(done - shown[0].n)

    try:
        yield (lambda done, total: None) if quiet else update
    finally:
        for progress in shown:
            progress.close()
