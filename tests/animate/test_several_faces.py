"""Several faces in one picture: one batch, each moved as it would be alone, all pasted back."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels import ops
from lpkernels.animate.animator import Animator
from lpkernels.animate.crop import Crop, Square, crop_from_box, crop_from_square, feathered_mask
from lpkernels.animate.extract import extract_template
from lpkernels.animate.image import Box, Frame, save_image
from lpkernels.animate.pipeline import animate_file
from lpkernels.animate.portrait import DRIVING_LOOK, draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.session import Session
from lpkernels.animate.source import prepare_source
from lpkernels.errors import InputError
from lpkernels.fused.convert import optimize
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.animate.clips import write_clip
from tests.animate.live import SOON
from tests.animate.test_pipeline import frames_of

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
SIDE = 64
BOXES: list[Box] = [(10, 8, 64, 64), (90, 20, 50, 60)]


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return list(driving_frames(4, 64))


def group() -> Frame:
    """Two portraits in a picture 150 wide and 90 high."""
    whole = np.full((90, 150, 3), (40, 90, 160), np.uint8)
    whole[8:72, 10:74] = draw_portrait(64)
    whole[20:80, 85:145] = draw_portrait(60, yaw=-10, mouth=0.3, look=DRIVING_LOOK)
    return whole


def one_after_the_other(model: LivePortrait, crops: Sequence[Box | Crop], frames: list[Frame], **options: Any) -> Frame:
    """Each face animated alone, then pasted over what was there."""
    made = [crop if isinstance(crop, Crop) else crop_from_box(crop, SIDE) for crop in crops]
    animators = [Animator(model, group(), crop=crop, **options) for crop in crops]
    ratios = (0.2, 0.3) if animators[0].options.eye_retargeting else ()
    answers = []
    for frame in frames:
        whole = torch.from_numpy(group())[None]
        for animator, crop in zip(animators, made, strict=True):
            box, mask = ops.warp_mask(feathered_mask(SIDE), crop.M_c2o, (90, 150))
            image = torch.from_numpy(animator.step(frame, *ratios))[None]
            whole = ops.paste_back(image, whole, mask, crop.M_c2o, box)
        answers.append(whole[0].numpy())
    return np.stack(answers)


def levels(a: Frame, b: Frame) -> float:
    """The 99.9th percentile of the difference: a batch rounds single pixels otherwise than its pictures alone."""
    return float(np.quantile(np.abs(a.astype(int) - b), 0.999))


RETARGETING = MotionOptions(
    eye_retargeting=True, lip_retargeting=True, source_eye_ratio=(0.3, 0.3), source_lip_ratio=0.1
)


@pytest.mark.parametrize(
    "options",
    [
        MotionOptions(),
        MotionOptions(relative=False, region="exp"),
        MotionOptions(driving_option="expression-friendly", driving_multiplier=1.5),
        MotionOptions(stitching=False),
        RETARGETING,
    ],
)
def test_each_face_moves_as_it_would_alone(model: LivePortrait, clip: list[Frame], options: MotionOptions) -> None:
    expected = one_after_the_other(model, BOXES, clip, options=options)
    animator = Animator(model, group(), options=options, crop=BOXES, paste_back=True)
    assert animator.source.faces == 2
    assert animator.frame_size == (90, 150)
    ratios = (0.2, 0.3) if options.eye_retargeting else ()
    answers = np.stack([animator.step(frame, *ratios) for frame in clip])
    assert levels(answers, expected) <= 1
    assert np.abs(answers[0].astype(int) - group())[20:60, 20:60].mean() > 10
    assert np.abs(answers[0].astype(int) - group())[30:60, 100:130].mean() > 10


def test_the_fused_networks_take_a_batch_of_faces(model: LivePortrait, clip: list[Frame]) -> None:
    fused = optimize(model, "fp32")
    expected = one_after_the_other(fused, BOXES, clip[:2])
    animator = Animator(fused, group(), crop=BOXES, paste_back=True)
    assert levels(np.stack([animator.step(frame) for frame in clip[:2]]), expected) <= 1


def test_crops_that_turn_and_overlap(model: LivePortrait, clip: list[Frame]) -> None:
    squares = (Square((40.0, 40.0), 60.0, 9.0), Square((75.0, 50.0), 60.0, -20.0))
    crops = [crop_from_square(square, SIDE) for square in squares]
    expected = one_after_the_other(model, crops, clip)
    answers = np.stack(list(Animator(model, group(), crop=crops, paste_back=True).run(clip)))
    assert levels(answers, expected) <= 1


def test_motions_and_tensors(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, group(), crop=BOXES, paste_back=True)
    expected = np.stack([animator.step(frame) for frame in clip])
    motion = animator.driving_motion
    assert motion is not None
    assert len(motion) == 1
    assert motion.kp is not None
    template = extract_template(model, clip)
    assert torch.allclose(motion.exp, template.exp[-1:], atol=1e-5)
    assert levels(np.stack(list(animator.run_template(template))), expected) <= 1
    animator.reset()
    tensor = animator.step(torch.from_numpy(clip[0]))
    assert levels(tensor.numpy(), expected[0]) <= 1
    assert animator.step_batch(clip[0][None]).shape == (1, 90, 150, 3)
    with pytest.raises(InputError, match="frames must be one frame for a source of several faces, got 4"):
        animator.step_batch(np.stack(clip))


def test_sources_of_as_many_faces(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, group(), crop=BOXES, paste_back=True)
    animator.step(clip[0])
    mirrored = np.ascontiguousarray(group()[:, ::-1])
    animator.set_source(mirrored, [(76, 8, 64, 64), (10, 20, 50, 60)])
    assert np.array_equal(animator.step(clip[1])[:8], mirrored[:8])
    before = animator.source
    with pytest.raises(InputError, match="source must have 2 faces, as the one before; got 1"):
        animator.set_source(mirrored)
    assert animator.source is before
    with Session(Animator(model, group(), crop=BOXES, paste_back=True)) as session:
        session.add_source("mirrored", prepare_source(model, mirrored, [(76, 8, 64, 64), (10, 20, 50, 60)], True))
        with pytest.raises(InputError, match="source must have 2 faces"):
            session.add_source("one", mirrored)
        session.switch_source("mirrored")
        session.push(clip[0])
        answer = session.wait(SOON)
        assert answer is not None
        assert np.array_equal(answer.picture[:8], mirrored[:8])


@pytest.mark.parametrize(
    ("crop", "paste_back", "words"),
    [
        (BOXES, False, "crop: 2 crops of one picture are pasted back into it: pass paste_back=True"),
        ([], True, "crop must hold at least one crop, got none"),
        ([BOXES[0], (140, 0, 64, 64)], True, "crop 140,0,64,64 leaves the picture"),
        ("both", True, "'auto'; got 'both'"),
    ],
)
def test_what_is_wrong_with_several(model: LivePortrait, crop: Any, paste_back: bool, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Animator(model, group(), crop=crop, paste_back=paste_back)


def test_a_video_of_a_group(model: LivePortrait, clip: list[Frame], tmp_path: Path) -> None:
    save_image(tmp_path / "group.png", group())
    driving = write_clip(tmp_path / "driving.mp4", clip)
    arguments = (model, tmp_path / "group.png", driving, tmp_path / "out.mp4")
    animate_file(*arguments, crop=BOXES, paste_back=True, side_by_side=tmp_path / "side.mp4")
    frames = frames_of(tmp_path / "out.mp4")
    assert frames.shape == (4, 90, 150, 3)
    assert np.abs(frames[:, :, :6] - group()[:, :6]).max() <= 8
    for part in (np.s_[:, 20:60, 20:60], np.s_[:, 30:60, 100:130]):
        assert np.abs(frames[part] - group()[None][part]).mean() > 10
    with pytest.raises(InputError, match="of a source video one face is animated"):
        animate_file(model, driving, driving, tmp_path / "video.mp4", crop=BOXES, paste_back=True)


@pytest.mark.skipif(importlib.util.find_spec("mtcnn") is None, reason="needs the extra: pip install 'lpkernels[face]'")
def test_all_faces_are_found(model: LivePortrait, clip: list[Frame]) -> None:
    whole = np.full((240, 460, 3), (190, 200, 205), np.uint8)
    whole[10:210, 10:210] = draw_portrait(200)
    whole[30:210, 250:430] = draw_portrait(180)
    animator = Animator(model, whole, crop="all", paste_back=True)
    assert animator.source.faces == 2
    changed = (animator.step(clip[0]) != whole).any(2)
    assert changed[60:140, 70:150].mean() > 0.8
    assert changed[80:150, 300:380].mean() > 0.8
    assert Animator(model, whole, crop="auto", paste_back=True).source.faces == 1
    with pytest.raises(InputError, match="no face was found"):
        Animator(model, whole[:, 215:245], crop="all", paste_back=True)
