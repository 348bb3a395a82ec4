"""Paste-back: whole pictures out of the animator, the rest of them untouched, and overlapping crops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from lpkernels import ops
from lpkernels.animate.animator import Animator
from lpkernels.animate.crop import Crop, Square, crop_from_box, crop_from_square, feathered_mask
from lpkernels.animate.image import Frame
from lpkernels.animate.paste import PasteBack, prepare_paste_back
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.session import Session
from lpkernels.animate.source import prepare_source
from lpkernels.errors import InputError
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.animate.live import SOON

CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
SIDE = 64
BOX = (30, 20, 64, 80)


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


@pytest.fixture(scope="module")
def clip() -> list[Frame]:
    return list(driving_frames(4, 64))


def noise(*shape: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture() -> Frame:
    """A portrait within noise, 130 wide and 121 high."""
    framed = noise(121, 130, 3)
    framed[20:100, 30:110] = draw_portrait(80)
    return framed


def pasted(image: Frame, whole: Frame, crop: Crop) -> Frame:
    """What the op makes of it, called by hand."""
    box, mask = ops.warp_mask(feathered_mask(SIDE), crop.M_c2o, whole.shape[:2])
    return ops.paste_back(torch.from_numpy(image)[None], torch.from_numpy(whole), mask, crop.M_c2o, box)[0].numpy()


@pytest.mark.parametrize("turned", [False, True])
def test_a_frame_is_the_square_in_its_place(model: LivePortrait, clip: list[Frame], turned: bool) -> None:
    crop = crop_from_square(Square((70.0, 60.0), 90.0, 17.0), SIDE) if turned else BOX
    whole = picture()
    square, animator = Animator(model, whole, crop=crop), Animator(model, whole, crop=crop, paste_back=True)
    assert (square.frame_size, animator.frame_size) == ((SIDE, SIDE), (121, 130))
    made = crop if isinstance(crop, Crop) else crop_from_box(crop, SIDE)
    for frame in clip:
        expected = pasted(square.step(frame), whole, made)
        answer = animator.step(frame)
        assert np.array_equal(answer, expected)
    changed = (answer != whole).any(2)
    x, y, width, height = made.box
    assert changed[y : y + height, x : x + width].mean() > 0.3
    changed[y : y + height, x : x + width] = False
    assert not changed.any()


def test_without_a_crop_the_picture_keeps_its_size(model: LivePortrait, clip: list[Frame]) -> None:
    whole = draw_portrait(80)[:, 5:]
    answer = Animator(model, whole, paste_back=True).step(clip[0])
    assert answer.shape == (80, 75, 3)
    assert np.array_equal(answer[0], whole[0]), "the mask is zero along the border"


def test_every_way_to_ask_gives_the_same(model: LivePortrait, clip: list[Frame]) -> None:
    def new() -> Animator:
        return Animator(model, picture(), crop=BOX, paste_back=True)

    animator = new()
    expected = np.stack([animator.step(frame) for frame in clip])
    assert np.array_equal(np.stack(list(new().run(clip))), expected)
    assert np.array_equal(np.stack(list(new().run(clip, ahead=2))), expected), "frames held at once"
    batch = Animator(model, picture(), crop=BOX).step_batch(np.stack(clip))  # a batch rounds otherwise than its frames
    expected = np.stack([pasted(image, picture(), crop_from_box(BOX, SIDE)) for image in batch])
    assert np.array_equal(new().step_batch(np.stack(clip)), expected)
    tensors = new().step_batch(torch.from_numpy(np.stack(clip)))
    assert isinstance(tensors, Tensor)
    assert np.array_equal(tensors.numpy(), expected)


def test_sources_of_other_sizes(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, picture(), crop=BOX, paste_back=True)
    animator.step(clip[0])
    other = draw_portrait(90)
    prepared = prepare_source(model, other, (10, 10, 70, 70), paste_back=True)
    animator.set_source(prepared)
    assert animator.frame_size == (90, 90)
    answer = animator.step(clip[1])
    assert np.array_equal(answer[:10], other[:10])
    animator.set_source(other, (10, 10, 70, 70))
    assert np.array_equal(animator.step(clip[1]), answer)
    with pytest.raises(InputError, match=r"prepare_source\(paste_back=True\)"):
        animator.set_source(prepare_source(model, other))
    assert np.array_equal(animator.step(clip[1]), answer), "what was refused changes nothing"
    square = Animator(model, picture(), crop=BOX)
    square.set_source(prepared)
    assert square.step(clip[0]).shape == (SIDE, SIDE, 3)


def test_a_session_shows_whole_pictures(model: LivePortrait, clip: list[Frame]) -> None:
    animator = Animator(model, picture(), crop=BOX, paste_back=True)
    expected = [animator.step(frame) for frame in clip[:2]]
    with Session(Animator(model, picture(), crop=BOX, paste_back=True)) as session:
        session.add_source("other", draw_portrait(90))
        with pytest.raises(InputError, match="whole picture"):
            session.add_source("square", prepare_source(model, draw_portrait(90)))
        for frame, picture_ in zip(clip, expected, strict=False):
            session.push(frame)
            answer = session.wait(SOON)
            assert answer is not None
            assert np.array_equal(answer.picture, picture_)
        session.switch_source("other")
        session.push(clip[2])
        answer = session.wait(SOON)
        assert answer is not None
        assert answer.picture.shape == (90, 90, 3)


def overlapping() -> PasteBack:
    crops = [crop_from_square(Square(centre, 60.0, 10.0), SIDE) for centre in ((50.0, 50.0), (75.0, 60.0))]
    return prepare_paste_back(picture(), crops, SIDE, "cpu")


@pytest.mark.parametrize("count", [1, 2])
def test_a_canvas_holds_no_more_of_the_frame_before(count: int) -> None:
    paste = overlapping()
    paste = dataclasses.replace(paste, places=paste.places[:count])
    canvas = paste.canvas(count)
    assert canvas.is_contiguous()
    assert canvas.shape == (1, 121, 130, 3)
    for seed in range(3):
        images = torch.from_numpy(noise(count, SIDE, SIDE, 3, seed=seed))
        paste.onto(images, canvas)
        assert torch.equal(canvas, paste.new(images))
    assert torch.equal(paste.picture, torch.from_numpy(picture()))


def test_the_later_crop_lies_above() -> None:
    paste = overlapping()
    images = torch.full((2, SIDE, SIDE, 3), 10, dtype=torch.uint8)
    images[1] = 200
    out = paste.new(images)[0]
    assert out[60, 75].tolist() == [200] * 3
    assert out[52, 62].tolist() == [200] * 3, "in both"
    assert out[50, 35].tolist() == [10] * 3


def test_places_move_to_the_next_picture() -> None:
    paste = overlapping()
    other = noise(121, 130, 3, seed=5)
    moved = paste.moved(other)
    images = torch.from_numpy(noise(2, SIDE, SIDE, 3))
    crops = [crop_from_square(Square(centre, 60.0, 10.0), SIDE) for centre in ((50.0, 50.0), (75.0, 60.0))]
    assert torch.equal(moved.new(images), prepare_paste_back(other, crops, SIDE, "cpu").new(images))


def test_what_cannot_be_pasted_is_named(model: LivePortrait) -> None:
    with pytest.raises(InputError, match="size 64, the model's output size, to be pasted back; got 512"):
        Animator(model, picture(), crop=crop_from_box(BOX), paste_back=True)
    with pytest.raises(InputError, match="crop lies outside the picture, which is 130x121"):
        prepare_paste_back(picture(), [crop_from_box((200, 0, 20, 20), SIDE)], SIDE, "cpu")
    with pytest.raises(InputError, match="at least one crop"):
        prepare_paste_back(picture(), [], SIDE, "cpu")


@pytest.mark.gpu
def test_on_a_gpu_copies_overlap_and_pictures_are_whole(clip: list[Frame]) -> None:
    model = LivePortrait.random(0, CONFIG, device="cuda")
    square = Animator(model, picture(), crop=BOX)
    expected = [pasted(square.step(frame), picture(), crop_from_box(BOX, SIDE)).astype(int) for frame in clip]
    animator = Animator(model, picture(), crop=BOX, paste_back=True)
    for answer, truth in zip(animator.run(clip), expected, strict=True):
        assert np.abs(answer - truth).max() <= 1
    animator.reset()
    on_device = [animator.step(torch.from_numpy(frame).cuda()) for frame in clip]
    for answer, truth in zip(on_device, expected, strict=True):
        assert np.abs(answer.cpu().numpy() - truth).max() <= 1
