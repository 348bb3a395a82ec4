"""Records: what is loaded was checked, what is appended belongs together, what is compared changed or did not."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import compare, records
from lpkernels.errors import InputError
from tests.benchmarks.fakes import measured
from tests.benchmarks.fakes import records as fake_records


def test_a_round_trip_keeps_everything(tmp_path):
    skipped = measured("other", status="skipped", reason="no GPU", warmup_ms=[])
    for name in ("median_ms", "p20_ms", "p80_ms", "p99_ms"):
        setattr(skipped, name, None)
    kept = fake_records(measured(), skipped)
    records.save(kept, tmp_path / "records.json")
    assert records.load(tmp_path).to_dict() == kept.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]


def _broken(change):
    data = copy.deepcopy(fake_records(measured()).to_dict())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema=0), "schema"),
        (lambda data: data.update(runs=None), "runs must be a list"),
        (lambda data: data["measurements"][0].update(colour="red"), "unknown field 'colour'"),
        (lambda data: data["measurements"][0].pop("provider"), "provider"),
        (lambda data: data["measurements"][0].update(status="fine"), "status"),
        (lambda data: data["measurements"][0].update(precision="fp12"), "precision"),
        (lambda data: data["measurements"][0].update(run=3), "run must be"),
        (lambda data: data["measurements"][0].update(relative_error=None), "error beside it"),
        (lambda data: data["measurements"][0].update(median_ms=-1.0), "positive times"),
        (lambda data: data["measurements"][0].update(status="refused"), "must have no time"),
        (lambda data: data["measurements"].append("x"), "expected an object"),
    ],
)
def test_inconsistent_records_are_refused(tmp_path, change, message):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(_broken(change)))
    with pytest.raises(InputError, match=message) as error:
        records.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_damaged_files_are_refused(tmp_path, text):
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(InputError):
        records.load(path)
    with pytest.raises(InputError, match="no such records"):
        records.load(tmp_path / "absent.json")


def test_appending_replaces_and_keeps_the_earlier_median():
    kept = fake_records(measured(median_ms=2.0))
    run = kept.add_run(copy.deepcopy(kept.runs[0]))
    kept.put([measured(median_ms=2.1), measured("new")], run)
    first, second = kept.measurements
    assert (first.median_ms, first.repeats_ms, first.run) == (2.1, [2.0], 1)
    assert second.provider == "new"


def test_a_skipped_provider_does_not_replace_a_measured_one():
    kept = fake_records(measured())
    kept.put([measured(status="skipped", reason="left out", median_ms=1.0)], 0)
    assert kept.measurements[0].status == "ok"


@pytest.mark.parametrize("change", [{"device": "Other GPU"}, {"torch": "2.12"}])
def test_runs_of_different_machines_are_not_mixed(change):
    kept, other = fake_records(measured()), copy.deepcopy(fake_records().runs[0])
    other.environment |= change
    with pytest.raises(InputError, match="cannot append"):
        kept.add_run(other)


def test_shares_are_of_the_runs_own_ceilings():
    one = measured(median_ms=1.0, flops=3 * 10**11, bytes=2 * 10**9)
    assert fake_records(one).share(one) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (2.0, 2.0, "same"),
        (2.0, 2.01, "same"),
        (2.0, 3.0, "slower"),
        (3.0, 2.0, "faster"),
    ],
)
def test_compare_sees_what_leaves_the_spread(before, after, verdict):
    changes = compare.compare(fake_records(measured(median_ms=before)), fake_records(measured(median_ms=after)))
    assert [change.verdict for change in changes] == [verdict]
    assert len(compare.table(changes).rows) == (verdict != "same")


def test_compare_wide_spreads_overlap():
    wide = {"p20_ms": 1.0, "p80_ms": 4.0}
    changes = compare.compare(
        fake_records(measured(median_ms=2.0, **wide)), fake_records(measured(median_ms=3.0, **wide))
    )
    assert changes[0].verdict == "same"


def test_compare_names_what_came_and_went():
    refused = measured(status="refused", reason="wrong", median_ms=1.0)
    refused.median_ms = None
    before, after = fake_records(measured(), measured("old")), fake_records(refused, measured("new"))
    verdicts = {change.one.provider: change.verdict for change in compare.compare(before, after)}
    assert verdicts == {"baseline-amp": "ok -> refused", "new": "new", "old": "gone"}
    assert "gone" in compare.table(compare.compare(before, after)).terminal()
