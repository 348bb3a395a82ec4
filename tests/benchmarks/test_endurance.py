"""Long runs, short: what is kept of them, and what takes their times away."""

from __future__ import annotations

import dataclasses
import mmap

import numpy as np
import pytest
import torch

from benchmarks import endurance as parts
from benchmarks import endurance_soak, memory, records, sections, session
from benchmarks.context import Context, Options
from benchmarks.levels import endurance as level
from benchmarks.timing import quantile
from lpkernels.animate.animator import Animator
from lpkernels.errors import LpkernelsError
from tests.benchmarks.fakes import CPU, measured
from tests.benchmarks.fakes import records as fake_records


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small are slower on more, by far where others compute beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def context():
    return Context(Options(CPU, "tiny"))


@pytest.fixture(scope="module")
def case(context):
    return parts.Case.of(context, "lpkernels-fp32")


def test_every_part_is_measured_and_kept(tmp_path):
    path = tmp_path / "records.json"
    options = Options(CPU, "tiny", frames=11, soak_seconds=1.0)
    assert session.run(["endurance"], options, path).unreached == {}
    kept = records.load(path)
    by_part = {one.subject: one for one in kept.level("endurance")}
    assert tuple(by_part) == level.PARTS
    for one in by_part.values():
        assert one.status == "ok", one.reason
        facts = one.extras
        assert facts["differing"] == 0
        assert set(facts["memory"]) == {"before", "tenth", "end"}
        assert facts["growth_mb"].keys() == facts["memory"]["end"].keys()
        for part in ("first", "last"):
            assert 0 < facts[part]["median_ms"] <= facts[part]["p99_ms"] <= facts[part]["max_ms"]
        assert one.relative_error < one.tolerance
    assert by_part["frames"].samples == by_part["frames"].extras["frames"] == 11
    assert by_part["frames"].extras["last_equals_first"] is True
    assert by_part["threads"].samples == by_part["threads"].extras["frames"] == 16
    soak = by_part["soak"].extras
    assert soak["frames"] == pytest.approx(30, abs=8)
    assert soak["shown"] <= soak["animated"] <= soak["frames"] - soak["dropped"] + 1
    rows = sections.of_level(kept, "endurance").rows
    assert [row[2] for row in rows] == ["11", "16", str(soak["frames"])]


@pytest.fixture
def quick(case, monkeypatch):
    """Parts that only say what they were asked for."""
    monkeypatch.setattr(level.Case, "of", classmethod(lambda cls, context, provider: case))
    for part, name in zip(level.PARTS, ("in_a_row", "together", "soak"), strict=True):
        monkeypatch.setattr(level, name, lambda case, length, part=part: case.measurement(part, f"{length}"))


@pytest.mark.usefixtures("quick")
def test_parts_and_providers_are_chosen():
    def ran(**fields):
        options = Options(CPU, "tiny", frames=2, soak_seconds=0.5, **fields)
        return [one.subject for (one,) in level.measure(Context(options))]

    assert ran() == list(level.PARTS)
    lengths = [one.shape for (one,) in level.measure(Context(Options(CPU, "tiny", frames=2, soak_seconds=0.5)))]
    assert lengths == ["2", "2", "0.5"]

    assert ran(subjects=("frames",)) == ["frames"]
    assert ran(subjects=("soak", "conv_*")) == ["soak"]
    assert ran(subjects=("conv_*",)) == ran(providers=("baseline-*",)) == []


def test_pictures_that_change_have_no_times(case, monkeypatch):
    honest, calls = Animator.step, []

    def drifting(self, *arguments):
        calls.append(None)
        picture = honest(self, *arguments)
        return picture ^ np.uint8(len(calls) > 10)

    monkeypatch.setattr(Animator, "step", drifting)
    result = parts.in_a_row(case, 12)
    assert (result.status, result.median_ms) == ("refused", None)
    assert result.extras["differing"] == 12 + 4 - 10
    assert "6 of 12" in result.reason
    assert records.check(result, 1) is None
    (row,) = sections.endurance([result]).rows
    assert "refused: 6 of 12" in row[-1]
    assert not any(" ms" in cell for cell in row)


def test_a_part_that_fails_is_refused_and_the_others_go_on(quick, monkeypatch):
    def broken(case, seconds):
        raise LpkernelsError("the camera is gone")

    monkeypatch.setattr(level, "in_a_row", broken)
    options = Options(CPU, "tiny", frames=2, soak_seconds=0.5)
    frames, threads, soak = (one for (one,) in level.measure(Context(options)))
    assert (frames.status, frames.reason) == ("refused", "failed: LpkernelsError: the camera is gone")
    assert (threads.status, soak.status) == ("ok", "ok")


def test_a_session_too_slow_for_its_first_part_is_refused(case, monkeypatch):
    monkeypatch.setattr(endurance_soak, "WINDOW_S", 1e-6)
    result = endurance_soak.soak(case, 0.3)
    assert result.status == "refused"
    assert "no picture in the first or the last 1e-06 s" in result.reason


def test_bad_frames_of_a_session_are_no_pictures(case):
    """A frame that the animator refuses is counted, and takes the times away."""
    wrong = dataclasses.replace(case, frames=(*case.frames[:3], case.frames[3][..., :2]))
    result = endurance_soak.soak(wrong, 0.6)
    assert result.status == "refused"
    assert result.extras["bad"] > 0


def test_tenths_and_growth():
    assert parts.tenths(list(range(25))) == ([0, 1], [23, 24])
    assert parts.tenths([7.0]) == ([7.0], [7.0])
    assert memory.growth({"host_mb": 10.0, "gone": 1.0}, {"host_mb": 12.5, "new": 3.0}) == {"host_mb": 2.5}
    result = measured(level="endurance")
    parts.fill(result, [1.0] * 8 + [2.0] * 8, [1.0, 1.0], [2.0, 4.0])
    assert result.extras["slower_by"] == pytest.approx(2.0)
    assert result.drift == pytest.approx(1.0)
    assert result.extras["last"]["p99_ms"] == pytest.approx(quantile([2.0, 4.0], 0.99))
    assert sections.of_level(fake_records(result), "endurance").rows[0][9] == "+200.0%"


def test_memory_that_is_held_is_seen():
    before = memory.read(CPU)
    if not before:
        pytest.skip("no /proc here")
    with mmap.mmap(-1, 64 << 20) as held:  # never of the heap, whose free pages may be resident already
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert memory.growth(before, memory.read(CPU))["host_mb"] > 48


@pytest.mark.gpu
def test_nothing_grows_and_nothing_changes_on_a_gpu():
    options = Options(torch.device("cuda"), "small", frames=320, soak_seconds=4.0)
    for (one,) in level.measure(Context(options)):
        assert one.status == "ok", one.reason
        assert {"allocated_mb", "reserved_mb", "device_mb"} <= one.extras["growth_mb"].keys()
        assert one.extras["growth_after_tenth_mb"]["allocated_mb"] < 4, one.subject
