"""Quantiles and rates in fixed memory."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lpkernels.animate._live_stats import Histogram, Rate


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_a_little_high_at_most(share: float) -> None:
    times = np.random.default_rng(0).lognormal(-4, 1, 5000)
    histogram = Histogram()
    for time in times:
        histogram.add(float(time))
    exact = float(np.quantile(times, share, method="inverted_cdf"))
    assert exact <= histogram.quantile(share) * (1 + 1e-9)
    assert histogram.quantile(share) <= exact * 1.045


def test_mean_and_maximum_are_exact() -> None:
    histogram = Histogram()
    for time in (0.010, 0.020, 0.060):
        histogram.add(time)
    summary = histogram.summary()
    assert (summary.count, summary.max_ms) == (3, 60.0)
    assert summary.mean_ms == pytest.approx(30)
    assert summary.p99_ms == 60.0, "never above the maximum"


def test_nothing_timed() -> None:
    summary = Histogram().summary()
    assert (summary.count, summary.mean_ms, summary.p50_ms, summary.p99_ms, summary.max_ms) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("time", [-1.0, 0.0, 1e-9, 1e6])
def test_times_outside_the_bins_count(time: float) -> None:
    histogram = Histogram()
    histogram.add(time)
    assert histogram.summary().count == 1
    assert histogram.quantile(0.5) <= max(time, 0)


def test_memory_does_not_grow() -> None:
    histogram, rate = Histogram(), Rate(8)
    before = len(histogram._bins)
    for index in range(2000):
        histogram.add(index * 1e-3)
        rate.add(index * 0.1)
    assert len(histogram._bins) == before
    assert sys.getsizeof(histogram._bins) < 8192
    assert rate.at(199.9) == pytest.approx(10)


def test_a_rate_needs_two_events() -> None:
    rate = Rate()
    assert rate.at(5) == 0
    rate.add(5)
    assert rate.at(6) == 0
    rate.add(5)
    assert rate.at(5) == 0, "no time has passed"
    assert rate.at(7) == pytest.approx(0.5)
