"""A program before it is accelerated, after, and restored: on one made up here, and on a checkout if one is named."""

from __future__ import annotations

import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import checkout, program_media, records, sections, session
from benchmarks.context import Context, Options
from benchmarks.levels import programs as level
from benchmarks.timing import WallSampler
from lpkernels.animate.image import save_image
from lpkernels.animate.portrait import write_sample
from lpkernels.animate.video import VideoWriter
from lpkernels.errors import InputError
from tests.benchmarks.fakes import CPU


@pytest.fixture
def made(tmp_path):
    """A checkout whose wrapper needs what is not installed, and its loop."""
    package = tmp_path / "made_up"
    package.mkdir()
    text = """
        import cv2; cv2.setNumThreads(0); cv2.ocl.setUseOpenCL(False)
        import onnxruntime.capi.anything
        import tyro
        import yaml
        import numpy as np
        import torch
        from rich.progress import track

        torch.backends.cudnn.benchmark = True

        class Settings(tyro.conf.Base):
            size: tyro.conf.arg(aliases=["-s"]) = cv2.INTER_LINEAR

        def load(path):
            with open(path) as file:
                return yaml.load(file, Loader=yaml.SafeLoader)

        def resized(picture, side):
            return cv2.resize(picture, (side, side))

        def tracked(items):
            return list(track(items, description="x", total=3))
    """
    (package / "live_portrait_wrapper.py").write_text(textwrap.dedent(text))
    return tmp_path


def test_what_is_not_installed_is_stood_in_for_and_forgotten(made, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    paths, finders = list(sys.path), list(sys.meta_path)
    with checkout.importable(made) as found:
        assert found.package == "made_up"
        module = found.module("live_portrait_wrapper")
        assert {"onnxruntime", "tyro"} <= found.missing
        (tmp_path / "sizes.yaml").write_text('{"a": 1}')
        assert module.load(tmp_path / "sizes.yaml") == {"a": 1}
        picture = np.zeros((8, 8, 3), np.uint8)
        assert module.resized(picture, 4).shape == (4, 4, 3)
        assert module.tracked(range(3)) == [0, 1, 2]
        assert torch.backends.cudnn.benchmark
        with pytest.raises(ModuleNotFoundError):
            found.module("no_such_module")
    assert not torch.backends.cudnn.benchmark
    assert (sys.path, sys.meta_path) == (paths, finders)
    assert "made_up.live_portrait_wrapper" not in sys.modules
    assert not found.missing & set(sys.modules)


def test_only_what_pictures_and_messages_need_is_stood_in_for(made):
    (made / "made_up" / "other.py").write_text("import a_network_that_is_needed")
    with checkout.importable(made) as found, pytest.raises(ModuleNotFoundError, match="a_network_that_is_needed"):
        found.module("other")


def test_no_checkout_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv(checkout.VARIABLE, raising=False)
    outcome = session.run(["programs"], Options(CPU, "tiny"), tmp_path / "records.json")
    assert "names no checkout" in outcome.unreached["programs"]
    monkeypatch.setenv(checkout.VARIABLE, str(tmp_path))
    outcome = session.run(["programs"], Options(CPU, "tiny"), tmp_path / "records.json")
    assert "holds no */live_portrait_wrapper.py" in outcome.unreached["programs"]


class MadeUp:
    """A program whose networks are one number; ``error`` is what accelerating adds to its answers."""

    def __init__(self, error: float = 0.0, left: float = 0.0) -> None:
        picture = np.zeros((4, 4, 3), np.uint8)
        self.media = SimpleNamespace(frames=[picture] * 3, source=picture, of_files=False)
        self.pastes, self.value = False, 1.0
        self.error, self.left = error, left
        self.wrapper = SimpleNamespace(
            inference_cfg=SimpleNamespace(flag_use_half_precision=False),
            get_kp_info=lambda image: {"kp": image + self.value},
            transform_keypoint=lambda info: info["kp"],
            prepare_source=lambda frame: torch.ones(1, 2),
            prepare_videos=lambda frames: torch.ones(1, 1, 2),
            extract_feature_3d=lambda image: image,
            warp_decode=lambda volume, x_s, x_d: {"out": volume + x_d * self.value},
        )

    def execute(self, count=None):
        return [2.0] * 3, [np.full((4, 4, 3), 100 * self.value, np.uint8)] * 3

    def accelerate(self, wrapper, precision):
        self.value += self.error

    def restore(self, wrapper):
        self.value = 1.0 + self.left


def recorded(program, monkeypatch):
    monkeypatch.setattr(level, "accelerate", program.accelerate)
    monkeypatch.setattr(level, "restore", program.restore)
    monkeypatch.setattr(level, "sampler_for", lambda device, kernel: WallSampler())
    found = level._records(Context(Options(CPU, "tiny")), program, ["cv2"])
    assert all(records.check(one, 1) is None for one in found)
    return {(one.subject, one.provider): one for one in found}


def test_three_states_are_recorded_with_their_errors(monkeypatch):
    found = recorded(MadeUp(error=1e-5), monkeypatch)
    assert set(found) == {(subject, name) for subject in level.SUBJECTS for name in level.PROVIDERS}
    assert all(one.status == "ok" for one in found.values())
    assert found["M", "accelerated"].relative_error == pytest.approx(5e-6, rel=0.1)
    assert not found["W+G", "accelerated"].extras["same_as_original"]
    assert found["W+G", "restored"].extras["same_as_original"]
    loop = found["loop", "original"]
    assert (loop.median_ms, loop.extras["speedup"], loop.relative_error) == (2.0, 1.0, 0.0)
    assert "no paste-back: cv2 is not installed" in loop.extras["note"]
    rows = sections.programs(list(found.values())).rows
    assert [row[5] for row in rows if row[0] == "M"] == ["yes", "no", "yes"]


def test_an_accelerated_program_that_errs_has_no_times(monkeypatch):
    found = recorded(MadeUp(error=0.1), monkeypatch)
    assert found["loop", "accelerated"].status == "refused"
    assert "exceeds" in found["M", "accelerated"].reason
    assert found["loop", "restored"].status == "ok"


def test_what_is_not_as_before_is_not_restored(monkeypatch):
    found = recorded(MadeUp(left=1e-6), monkeypatch)
    assert found["M", "restored"].status == "refused"
    assert "not those of before" in found["M", "restored"].reason


def test_a_program_that_cannot_be_accelerated_keeps_its_own_times(monkeypatch):
    program = MadeUp()
    program.accelerate = lambda wrapper, precision: 1 / 0
    found = recorded(program, monkeypatch)
    assert found["loop", "original"].status == "ok"
    for name in ("accelerated", "restored"):
        assert found["loop", name].status == "refused"
        assert "ZeroDivisionError" in found["loop", name].reason


def test_files_to_animate(tmp_path):
    source, driving = write_sample(tmp_path, frames=4, size=64)
    save_image(tmp_path / "wide.png", np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    media = program_media.loaded(tmp_path / "wide.png", driving, 3, 32)
    assert [frame.shape for frame in media.frames] == [(256, 256, 3)] * 3
    assert (media.picture.shape, media.source.shape, media.crop.size) == ((60, 90, 3), (256, 256, 3), 32)
    corners = media.crop.corners  # the face lies in the picture
    assert corners.min() >= 0
    assert (corners.max(0) <= (90, 60)).all()
    with VideoWriter(tmp_path / "wide.mp4", 25, (96, 64)) as writer:
        writer.write(np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(InputError, match="driving must be a square clip, got 96x64"):
        program_media.loaded(source, tmp_path / "wide.mp4", 3, 32)
    with pytest.raises(InputError, match="missing"):
        program_media.loaded(tmp_path / "missing.png", driving, 3, 32)


def test_records_keep_names_of_files_alone(tmp_path):
    options = Options(CPU, "tiny", source=tmp_path / "a.png", driving=tmp_path / "b.mp4")
    kept = session._arguments(options)
    assert (kept["source"], kept["driving"], kept["device"]) == ("a.png", "b.mp4", "cpu")


@pytest.mark.slow
@pytest.mark.skipif(checkout.path() is None, reason=f"{checkout.VARIABLE} names no checkout of LivePortrait")
def test_the_checkout(tmp_path):
    outcome = session.run(["programs"], Options(CPU, "tiny", frames=2), tmp_path / "records.json")
    if "programs" in outcome.unreached:
        pytest.skip(outcome.unreached["programs"])  # a package without the original's pipeline
    found = {(one.subject, one.provider): one for one in outcome.records.measurements}
    assert all(one.status == "ok" for one in found.values())
    assert all(found[subject, "restored"].extras["same_as_original"] for subject in level.SUBJECTS)
