"""Frames under way: results in order, errors after the frames before them, nothing held longer than needed."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator

import pytest

from lpkernels.animate._jobs import Job, overlapped


def job(value: int) -> Job:
    return Job(lambda: value, None)


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_results_in_order_and_few_under_way(ahead: int) -> None:
    started: list[int] = []

    def start(item: int) -> Job:
        started.append(item)
        return job(item)

    results = overlapped(itertools.count(), start, lambda one: one.result(), ahead)
    for index in range(5):
        assert next(results) == index
        assert started == list(range(index + 1 + ahead))
    assert list(overlapped(iter(range(4)), job, lambda one: one.result(), ahead)) == [0, 1, 2, 3]
    assert list(overlapped([], job, lambda one: one.result(), ahead)) == []


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("in_source", [True, False])
def test_an_error_comes_after_the_frames_before_it(ahead: int, in_source: bool) -> None:
    def items() -> Iterator[int]:
        yield from range(4)
        if in_source:
            raise OSError("camera gone")
        yield -1

    def start(item: int) -> Job:
        if item < 0:
            raise OSError("camera gone")
        return job(item)

    results = overlapped(items(), start, lambda one: one.result(), ahead)
    assert list(itertools.islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(OSError, match="camera gone"):
        next(results)


def test_closing_early_reads_no_further_and_frees_the_frames() -> None:
    class Picture:
        pass

    taken: list[weakref.ref[Picture]] = []

    def items() -> Iterator[Picture]:
        while True:
            picture = Picture()
            taken.append(weakref.ref(picture))
            yield picture

    source = items()
    results = overlapped(source, lambda picture: Job(lambda: picture, None), lambda one: one.result(), 2)
    next(results)
    results.close()
    del results, source
    gc.collect()
    assert [reference() for reference in taken] == [None] * 3
