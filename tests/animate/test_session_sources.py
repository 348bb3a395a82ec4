"""Live sessions: sources and references that change between frames, with fake and real animators."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels.animate.animator import Animator
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.session import Session
from lpkernels.animate.source import prepare_source
from lpkernels.errors import InputError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.animate.live import SOON, FakeAnimator, frame

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)


pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Calls of ``prepare_source``, which gives the picture back."""
    calls: list[tuple[Any, ...]] = []

    def prepare(model: Any, source: Any, crop: Any, paste_back: bool) -> Any:
        calls.append((source, crop, threading.current_thread()))
        return source

    monkeypatch.setattr("lpkernels.animate.session.prepare_source", prepare)
    return calls


def test_sources_change_between_frames(make: Any, prepared: list[tuple[Any, ...]]) -> None:
    animator = FakeAnimator(gated=True)
    animator.model = LivePortrait.random(0, CONFIG)
    session = make(animator, source_name="first")
    session.add_source("second", "Bob", (1, 2, 3, 4))
    assert prepared == [("Bob", (1, 2, 3, 4), threading.current_thread())]
    assert session.sources == ("first", "second")
    session.push(frame(0))
    assert animator.next_begun() == 0
    session.switch_source("second")
    assert session.stats().source == "first", "the frame that is being animated keeps its source"
    animator.gate.release()
    answer = session.wait(SOON)
    assert (answer.source, chr(answer.picture[-1, -1, 0])) == ("first", "A")
    assert animator.next_begun() == "Bob", "loaded before the next frame comes"
    session.push(frame(1))
    animator.gate.release()
    answer = session.wait(SOON)
    assert (answer.source, chr(answer.picture[-1, -1, 0])) == ("second", "B")
    session.switch_source("first")
    session.push(frame(2))
    animator.gate.release()
    assert session.wait(SOON).source == "first"


def test_the_latest_of_several_switches_counts(make: Any, prepared: list[tuple[Any, ...]]) -> None:
    animator = FakeAnimator(gated=True)
    animator.model = LivePortrait.random(0, CONFIG)
    session = make(animator)
    for name in ("Bob", "Cleo"):
        session.add_source(name, name)
    session.push(frame(0))
    animator.next_begun()
    session.switch_source("Bob")
    session.switch_source("Cleo")
    session.push(frame(1))
    animator.gate.release(2)
    assert [animator.next_begun(), animator.next_begun()] == ["Cleo", 1]
    assert session.wait(SOON, after=0).sequence == 1
    session.close()
    assert animator.begun.empty(), "once"


def test_unknown_sources_are_named(make: Any) -> None:
    session = make(FakeAnimator(), source_name="me")
    with pytest.raises(InputError, match=r"'you'; there are 'me'"):
        session.switch_source("you")


def test_reset_comes_before_the_next_frame(make: Any) -> None:
    animator = FakeAnimator(gated=True)
    session = make(animator)
    session.push(frame(0))
    animator.next_begun()
    session.reset()
    session.push(frame(1))
    animator.gate.release(2)
    assert [animator.next_begun(), animator.next_begun()] == ["reset", 1]
    assert session.wait(SOON, after=0).sequence == 1
    session.close()
    assert animator.begun.empty(), "once"


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


def test_pictures_are_the_animators(model: LivePortrait) -> None:
    clip, portrait = list(driving_frames(4, 64)), draw_portrait(64)
    other = np.ascontiguousarray(portrait[:, ::-1])
    animator = Animator(model, portrait)
    expected = [animator.step(clip[0]), animator.step(clip[1])]
    animator.set_source(other)
    expected.append(animator.step(clip[2]))
    animator.reset()
    expected.append(animator.step(clip[3]))

    with Session(Animator(model, portrait), size=(64, 64)) as session:
        session.add_source("other", prepare_source(model, other))
        for turn, picture in enumerate(clip):
            if turn == 2:
                session.switch_source("other")
            if turn == 3:
                session.reset()
            session.push(picture)
            answer = session.wait(SOON)
            assert answer is not None
            assert np.array_equal(answer.picture, expected[turn])


def test_a_prepared_source_has_its_crop(model: LivePortrait) -> None:
    animator = Animator(model, draw_portrait(64))
    with Session(animator) as session:
        with pytest.raises(InputError, match="cropped already"):
            session.add_source("x", animator.source, (0, 0, 9, 9))
        with pytest.raises(InputError, match="leaves the picture"):
            session.add_source("x", draw_portrait(64), (60, 60, 9, 9))
        assert session.sources == ("source",)
    with pytest.raises(InputError, match="cropped already"):
        animator.set_source(animator.source, (0, 0, 9, 9))


@pytest.mark.gpu
def test_on_a_gpu_pictures_are_the_animators_while_sources_are_added() -> None:
    model = LivePortrait.random(0, CONFIG, device="cuda", dtype=torch.float16)
    clip, portrait = list(driving_frames(6, 64)), draw_portrait(64)
    other = np.ascontiguousarray(portrait[:, ::-1])
    animator = Animator(model, portrait)
    expected = [animator.step(picture) for picture in clip[:3]]
    animator.set_source(other)
    expected += [animator.step(picture) for picture in clip[3:]]

    with Session(Animator(model, portrait), size=(64, 64)) as session:
        adding = threading.Thread(target=session.add_source, args=("other", other))
        adding.start()
        for turn, picture in enumerate(clip):
            if turn == 3:
                adding.join(SOON)
                session.switch_source("other")
            session.push(picture)
            answer = session.wait(SOON)
            assert answer is not None
            assert np.array_equal(answer.picture, expected[turn])
