"""Live sessions: a while of them, at the pace of a camera."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from lpkernels.animate._camera import open_camera
from lpkernels.animate._feeder import Feeder
from lpkernels.animate.animator import Animator
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.session import Session
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.animate.clips import write_clip
from tests.animate.live import add_up

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_soak(model: LivePortrait, tmp_path: Path) -> None:
    """20 s of a looping file at 30 frames a second, with sources that change."""
    clip = write_clip(tmp_path / "clip.mp4", list(driving_frames(30, 64)), fps=30)
    portrait = draw_portrait(64)
    memory: list[int] = []
    seen: list[int] = []
    with Feeder(open_camera(str(clip), loop=True)) as feeder, Session(Animator(model, portrait)) as session:
        session.add_source("other", np.ascontiguousarray(portrait[::-1]))
        feeder.start(lambda picture: session.push(picture, copy=False))
        began = time.monotonic()
        while (passed := time.monotonic() - began) < 20:
            answer = session.wait(0.1) or session.latest()
            if answer is not None and not answer.held:
                seen.append(answer.sequence)
                session.switch_source(session.sources[len(seen) % 2])
            if passed > 5:
                memory.append(_resident())
        feeder.close()
        assert feeder.error is None
    stats = session.stats()
    assert add_up(stats)
    assert (stats.bad, stats.waiting, stats.working) == (0, 0, 0)
    assert 400 <= stats.frames_in <= 610, "the file keeps its pace"
    assert stats.frames_out >= 20
    assert seen == sorted(set(seen)), "in order, none twice"
    assert len(seen) >= stats.frames_out - 2
    assert memory[-1] - memory[0] < 16 * 2**20
    assert max(memory) - memory[0] < 32 * 2**20
