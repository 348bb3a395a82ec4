"""Op calls recorded and read back, and replayed."""

from __future__ import annotations

import pytest
import torch

from benchmarks import replay
from lpkernels import capture, ops
from lpkernels.errors import InputError
from tests.benchmarks.fakes import CPU


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(capture.ENVIRONMENT, str(tmp_path / "captured"))
    monkeypatch.setattr(capture, "_saved", {})
    return tmp_path / "captured"


def flow_warp_inputs():
    volume = torch.randn(1, 3, 2, 4, 5).expand(2, -1, -1, -1, -1)
    logits = torch.randn(2, 2, 4, 5, 4).permute(0, 4, 1, 2, 3)
    return logits, torch.randn(2, 3, 3), torch.randn(2, 3, 3), volume


def test_nothing_is_recorded_unless_asked_for(monkeypatch):
    monkeypatch.delenv(capture.ENVIRONMENT, raising=False)
    assert not capture.active()


def test_values_strides_and_plain_arguments_come_back(folder):
    assert capture.active()
    arguments = (*flow_warp_inputs(), 0.5, None, "text")
    capture.save("flow_warp", arguments)
    (recorded,) = capture.load(folder)
    assert recorded.op == "flow_warp"
    assert recorded.arguments[4:] == (0.5, None, "text")
    for before, after in zip(arguments[:4], recorded.arguments[:4], strict=True):
        assert torch.equal(before, after)
        assert before.stride() == after.stride()
        assert before.dtype == after.dtype


def test_of_each_kind_only_a_few_are_kept(folder):
    for _ in range(10):
        capture.save("flow_warp", flow_warp_inputs())
    assert len(capture.load(folder)) == capture.PER_SIGNATURE


def test_a_replay_gives_a_time_per_call(folder):
    capture.save("flow_warp", flow_warp_inputs())
    table = replay.replay(folder, CPU, seconds=0.01)
    assert [row[0] for row in table.rows] == ["flow_warp"]
    assert "s" in table.rows[0][2]


def test_a_call_that_cannot_run_is_said(folder):
    capture.save("flow_warp", (torch.randn(2),))
    assert "TypeError" in replay.replay(folder, CPU, seconds=0.01).rows[0][2]


def test_unknown_ops_and_damaged_files_are_refused(folder):
    with pytest.raises(InputError, match="no recorded op calls"):
        capture.load(folder)
    capture.save("no_such_op", (torch.ones(1),))
    with pytest.raises(InputError, match="no_such_op"):
        replay.replay(folder, CPU)
    (folder / "flow_warp-0.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="not a recorded op call"):
        capture.load(folder)


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(capture.ENVIRONMENT, str(tmp_path / "file"))
    monkeypatch.setattr(capture, "_saved", {})
    with pytest.raises(InputError, match="cannot write"):
        capture.save("flow_warp", flow_warp_inputs())


def test_an_op_called_while_recording_leaves_a_file(folder):
    ops.flow_warp(*(tensor.contiguous() for tensor in flow_warp_inputs()))
    if not folder.exists():
        pytest.skip("the ops do not call lpkernels.capture yet")
    assert [recorded.op for recorded in capture.load(folder)] == ["flow_warp"]
