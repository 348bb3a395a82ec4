"""Malformed faces, crops, pictures and places to paste: each is refused by its name, and nothing is half done."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels import ops
from lpkernels.animate import crop, face, image, landmarks
from lpkernels.animate._driving import open_driving
from lpkernels.animate.animator import Animator
from lpkernels.animate.image import Frame, save_image
from lpkernels.animate.paste import prepare_paste_back
from lpkernels.animate.portrait import draw_portrait
from lpkernels.animate.session import Session
from lpkernels.animate.source import prepare_source
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait

NAN, INF = math.nan, math.inf
CONFIG = dataclasses.replace(LivePortraitConfig.tiny(), image_size=32)
SIDE = 64
PICTURE = draw_portrait(64)
GOOD_CROP = crop.crop_from_box((0, 0, 64, 64), SIDE)
Call = Callable[[Any], Any]


@pytest.fixture(scope="module")
def model() -> LivePortrait:
    return LivePortrait.random(0, CONFIG)


@pytest.fixture(scope="module")
def animator(model: LivePortrait) -> Animator:
    return Animator(model, PICTURE, crop=(4, 4, 50, 50), paste_back=True)


@pytest.fixture(scope="module")
def session(model: LivePortrait) -> Iterator[Session]:
    with Session(Animator(model, PICTURE)) as made:
        yield made


def refuse(call: Callable[[], Any], *names: str) -> None:
    """The call is refused in one line that has one of the names in it."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert any(name in message for name in names), message
    assert "\n" not in message
    assert len(message) < 400


POINTS: dict[str, Any] = {
    "None": None,
    "a number": 3.0,
    "text": "face",
    "a dict": {"eyes": (1, 2)},
    "objects": np.array([[object(), 1]] * 5),
    "complex": np.ones((5, 2), complex) * 1j,
    "no point": np.zeros((0, 2)),
    "one": [[1, 2]],
    "of no layout": np.random.default_rng(0).uniform(0, 9, (7, 2)),
    "in space": np.random.default_rng(0).uniform(0, 9, (203, 3)),
    "a batch": np.random.default_rng(0).uniform(0, 9, (1, 203, 2)),
    "flat": np.arange(406.0),
    "ragged": [[1, 2], [3]],
    "NaN": [[1, 2], [NAN, 3], [4, 5], [6, 7], [8, 9]],
    "NaN of 203": np.full((203, 2), NAN),
    "infinite": np.full((203, 2), INF),
    "a tensor with NaN": torch.full((5, 2), NAN),
}
OF_POINTS: dict[str, Call] = {
    "face_square": landmarks.face_square,
    "axis_points": landmarks.axis_points,
    "eye_ratios": landmarks.eye_ratios,
    "lip_ratio": landmarks.lip_ratio,
    "crop_from_landmarks": crop.crop_from_landmarks,
    "face_crop": face.face_crop,
}


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("function", OF_POINTS)
def test_landmarks(function: str, points: str) -> None:
    refuse(lambda: OF_POINTS[function](POINTS[points]), "landmarks")


@pytest.mark.parametrize("points", [np.full((5, 2), 7.0), np.full((203, 2), -1.5), [[4, 4], [4, 4]]])
def test_landmarks_at_one_point(points: Any) -> None:
    for function in (landmarks.face_square, crop.crop_from_landmarks, face.face_crop):
        refuse(lambda function=function: function(points), "landmarks")


BOXES: dict[str, Any] = {
    "empty": (1, 2, 0, 4),
    "turned round": (9, 9, -4, -4),
    "three numbers": (1, 2, 3),
    "five numbers": (1, 2, 3, 4, 5),
    "fractions": (0.5, 1, 8, 8),
    "NaN": (0, 0, NAN, 8),
    "infinite": (0, 0, INF, 8),
    "text": ("0", "0", "8", "8"),
    "a word": "face",
    "a number": 7,
    "None in it": (0, None, 8, 8),
    "corners": ((0, 0), (8, 8)),
    "a dict": {"x": 0, "y": 0, "w": 8, "h": 8},
    "a matrix": np.zeros((2, 2)),
    "outside": (64, 0, 8, 8),
    "far outside": (-(10**9), 0, 8, 8),
}
OF_BOXES = ("crop", "crop_padded", "crop_from_box", "prepare_source", "Animator", "set_source", "add_source", "driving")
NO_PICTURE_KNOWN = [("crop_from_box", "outside"), ("crop_from_box", "far outside")]


@pytest.mark.parametrize(
    ("function", "box"),
    [(function, box) for function in OF_BOXES for box in BOXES if (function, box) not in NO_PICTURE_KNOWN],
)
def test_boxes(
    function: str, box: str, model: LivePortrait, animator: Animator, session: Session, tmp_path: Path
) -> None:
    save_image(tmp_path / "driving.png", PICTURE)
    calls: dict[str, Call] = {
        "crop": lambda value: image.crop(PICTURE, value),
        "crop_padded": lambda value: image.crop_padded(PICTURE, value),
        "crop_from_box": lambda value: crop.crop_from_box(value, SIDE),
        "prepare_source": lambda value: prepare_source(model, PICTURE, value, True),
        "Animator": lambda value: Animator(model, PICTURE, crop=value),
        "set_source": lambda value: animator.set_source(PICTURE, value),
        "add_source": lambda value: session.add_source("bad", PICTURE, value),
        "driving": lambda value: open_driving(tmp_path / "driving.png", value),
    }
    before = animator.source
    refuse(lambda: calls[function](BOXES[box]), "crop")
    assert animator.source is before
    assert session.sources == ("source",)


PICTURES: dict[str, Any] = {
    "None": None,
    "a list": [[[1, 2, 3]]],
    "text in bytes": b"picture",
    "no row": np.zeros((0, 8, 3), np.uint8),
    "no column": np.zeros((8, 0, 3), np.uint8),
    "no colour": np.zeros((8, 8, 0), np.uint8),
    "grey": np.zeros((8, 8), np.uint8),
    "with alpha": np.zeros((8, 8, 4), np.uint8),
    "channels first": np.zeros((3, 8, 8), np.uint8),
    "two batches": np.zeros((1, 1, 8, 8, 3), np.uint8),
    "float": np.zeros((8, 8, 3), np.float32),
    "16 bits": np.zeros((8, 8, 3), np.uint16),
    "bool": np.zeros((8, 8, 3), bool),
    "objects": np.zeros((8, 8, 3), object),
    "float NaN": np.full((8, 8, 3), NAN),
    "a float tensor": torch.zeros(8, 8, 3),
    "a grey tensor": torch.zeros(8, 8, dtype=torch.uint8),
}
OF_PICTURES = (
    "prepare_source", "prepare_source, turned", "Animator", "set_source", "add_source", "step", "step_batch",
    "crop_picture", "find_landmarks", "prepare_paste_back",
)  # fmt: skip


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("function", OF_PICTURES)
def test_pictures(function: str, picture: str, model: LivePortrait, animator: Animator, session: Session) -> None:
    calls: dict[str, Call] = {
        "prepare_source": lambda value: prepare_source(model, value, (0, 0, 4, 4), True),
        "prepare_source, turned": lambda value: prepare_source(model, value, GOOD_CROP, True),
        "Animator": lambda value: Animator(model, value),
        "set_source": animator.set_source,
        "add_source": lambda value: session.add_source("bad", value),
        "step": animator.step,
        "step_batch": animator.step_batch,
        "crop_picture": lambda value: crop.crop_picture(value, GOOD_CROP),
        "find_landmarks": face.find_landmarks,
        "prepare_paste_back": lambda value: prepare_paste_back(value, [GOOD_CROP], SIDE, "cpu"),
    }
    before = animator.source, animator.driving_motion
    refuse(lambda: calls[function](PICTURES[picture]), "source", "frame", "picture")
    assert (animator.source, animator.driving_motion) == before
    assert session.sources == ("source",)


def test_a_session_counts_what_is_no_picture(model: LivePortrait) -> None:
    with Session(Animator(model, PICTURE)) as session:
        for value in PICTURES.values():
            session.push(value)
        stats = session.stats()
        assert (stats.bad, stats.frames_out, stats.failed) == (len(PICTURES), 0, False)
        session.push(PICTURE)
        answer = session.wait(10)
        assert answer is not None
        assert answer.sequence == len(PICTURES)


MATRICES: dict[str, Any] = {
    "None": None,
    "text": "identity",
    "a number": 3.0,
    "too short": [1, 0, 0, 0, 1],
    "too long": np.zeros((3, 4)),
    "a batch": np.eye(3)[None],
    "perspective": [[1, 0, 0], [0, 1, 0], [0.1, 0, 1]],
    "singular": [[1, 2, 0], [2, 4, 0]],
    "zero": np.zeros((2, 3)),
    "NaN": [[1, 0, NAN], [0, 1, 0]],
    "infinite": [[INF, 0, 0], [0, 1, 0]],
    "ragged": [[1, 0, 0], [0, 1]],
    "objects": [[object()] * 3] * 2,
    "complex": np.eye(3) * 1j,
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_matrices(matrix: str) -> None:
    mask = torch.full((8, 8), 255, dtype=torch.uint8)
    refuse(lambda: ops.warp_mask(mask, MATRICES[matrix], (20, 20)), "M_c2o")
    call = paste_call()
    out = call["out"].clone()
    refuse(lambda: ops.paste_back(**(call | {"matrix": MATRICES[matrix]})), "matrix")
    assert torch.equal(call["out"], out), "nothing was written"


def paste_call() -> dict[str, Any]:
    """A call that works, into an ``out`` of nines."""
    levels = torch.arange(20 * 24 * 3, dtype=torch.uint8).reshape(20, 24, 3)
    box, mask = ops.warp_mask(torch.full((8, 8), 255, dtype=torch.uint8), [1, 0, 3, 0, 1, 4], (20, 24))
    image_ = torch.full((1, 8, 8, 3), 7, dtype=torch.uint8)
    out = torch.full((1, 20, 24, 3), 9, dtype=torch.uint8)
    return {"image": image_, "source": levels, "mask": mask, "matrix": [1, 0, 3, 0, 1, 4], "box": box, "out": out}


BYTES = torch.uint8
ARGUMENTS: dict[str, list[Any]] = {
    "image": [
        None, np.zeros((1, 8, 8, 3), np.uint8), torch.zeros(8, 8, 3, dtype=BYTES), "image",
        torch.zeros(1, 1, 1, 3, dtype=BYTES), torch.zeros(1, 8, 8, 4, dtype=BYTES), torch.zeros(1, 8, 8, 3),
        torch.zeros(0, 8, 8, 3, dtype=BYTES), torch.zeros(1, 0, 0, 3, dtype=BYTES),
    ],
    "source": [
        None, torch.zeros(20, 24, dtype=BYTES), torch.zeros(20, 24, 4, dtype=BYTES), torch.zeros(20, 24, 3),
        torch.zeros(2, 20, 24, 3, dtype=BYTES), torch.zeros(0, 24, 3, dtype=BYTES), "picture",
    ],
    "mask": [
        None, torch.zeros(8, dtype=BYTES), torch.zeros(8, 8), torch.zeros(9, 8, dtype=BYTES),
        torch.zeros(0, 0, dtype=BYTES), torch.full((8, 8), NAN),
    ],
    "box": [
        None, (3, 4, 8), (3, 4, 9, 8), (-1, 4, 8, 8), (20, 4, 8, 8), (3, 15, 8, 8), "face", (3, 4, NAN, 8),
        (INF, 4, 8, 8), (3.5, 4, 8, 8), ("3", "4", "8", "8"), 5,
    ],
    "out": [
        "out", torch.zeros(1, 20, 24, 3), torch.zeros(1, 20, 25, 3, dtype=BYTES), torch.zeros(20, 24, 3, dtype=BYTES),
        torch.zeros(1, 24, 20, 3, dtype=BYTES).transpose(1, 2), np.zeros((1, 20, 24, 3), np.uint8),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, values in ARGUMENTS.items() for number in range(len(values))]
)
def test_paste_back(name: str, number: int) -> None:
    call = paste_call()
    refuse(lambda: ops.paste_back(**(call | {name: ARGUMENTS[name][number]})), name, *({"box"} & {name}), "mask")
    assert bool((call["out"] == 9).all()), "nothing was written"


@pytest.mark.parametrize(
    ("mask", "size", "name"),
    [
        (None, (20, 20), "mask"),
        (np.ones((8, 8)), (20, 20), "mask"),
        (torch.ones(8), (20, 20), "mask"),
        ("mask", (20, 20), "mask"),
        (torch.ones(8, 8, dtype=torch.int32), (20, 20), "mask"),
        (torch.full((8, 8), NAN), (20, 20), "mask"),
        (torch.full((8, 8), 1.5), (20, 20), "mask"),
        (torch.full((8, 8), -0.1), (20, 20), "mask"),
        (torch.zeros(8, 8), (20, 20), "mask"),
        (torch.ones(0, 0), (20, 20), "mask"),
        (torch.ones(8, 8), (0, 20), "size"),
        (torch.ones(8, 8), (20,), "size"),
        (torch.ones(8, 8), (20, -3), "size"),
        (torch.ones(8, 8), (20, NAN), "size"),
        (torch.ones(8, 8), (INF, 20), "size"),
        (torch.ones(8, 8), (20.5, 20), "size"),
        (torch.ones(8, 8), "size", "size"),
        (torch.ones(8, 8), None, "size"),
        (torch.ones(8, 8), 20, "size"),
        (torch.ones(8, 8), ("20", "20"), "size"),
    ],
)
def test_masks(mask: Any, size: Any, name: str) -> None:
    refuse(lambda: ops.warp_mask(mask, [1, 0, 3, 0, 1, 4], size), name)


NUMBERS: list[Any] = [0, -1, -512, NAN, INF, 1.5, None, "512", (4, 4), True]
FIVE = [[10.0, 10], [30, 10], [20, 20], [12, 30], [28, 30]]
OF_SIZES: dict[str, Call] = {
    "crop_from_square": lambda value: crop.crop_from_square(landmarks.Square((4, 4), 8, 0), value),
    "crop_from_box": lambda value: crop.crop_from_box((0, 0, 8, 8), value),
    "crop_from_landmarks": lambda value: crop.crop_from_landmarks(FIVE, value),
    "feathered_mask": crop.feathered_mask,
}


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
@pytest.mark.parametrize("function", OF_SIZES)
def test_sizes(function: str, number: Any) -> None:
    refuse(lambda: OF_SIZES[function](number), "size")


@pytest.mark.parametrize(
    ("square", "name"),
    [
        (((0, 0), 0, 0), "square"),
        (((0, 0), -3, 0), "square"),
        (((NAN, 0), 3, 0), "square"),
        (((0, INF), 3, 0), "square"),
        (((0, 0), NAN, 0), "square"),
        (((0, 0), 3, INF), "square"),
        (((0, 0), "3", 0), "square"),
        (((0, 0), None, 0), "square"),
        ((0, 3, 0), "square"),
        (((0, 0, 0), 3, 0), "square"),
        (((0, 0), 3), "square"),
        (None, "square"),
    ],
)
def test_squares(square: Any, name: str) -> None:
    refuse(lambda: crop.crop_from_square(square), name)


@pytest.mark.parametrize(
    ("matrix", "size"),
    [
        (np.full((3, 3), NAN), 64),
        (np.eye(2), 64),
        (np.eye(3)[:2], 64),
        (None, 64),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 64),
        (np.eye(3), 0),
        (np.eye(3), NAN),
        (np.full((3, 3), INF), 64),
    ],
)
def test_crops_made_by_hand(matrix: Any, size: Any) -> None:
    refuse(lambda: crop.Crop(matrix, np.eye(3), size), "crop's M_o2c", "size")
    refuse(lambda: crop.Crop(np.eye(3), matrix, size), "crop's M_c2o", "size")


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name in ("scale", "vx_ratio", "vy_ratio") for number in (NAN, INF, "2", None, (1, 2))]
    + [("scale", 0), ("scale", -2)],
)
def test_factors(name: str, number: Any) -> None:
    refuse(lambda: landmarks.face_square(FIVE, **{name: number}), "scale", "ratio")
    refuse(lambda: crop.crop_from_landmarks(FIVE, 64, **{name: number}), "scale", "ratio")


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (8,), (8, 8, 3), (NAN, 8), (8.5, 8), "8x8", 8, ("8", "8")], ids=repr)
def test_sizes_of_frames(size: Any, animator: Animator, model: LivePortrait) -> None:
    refuse(lambda: animator.warm_up(size), "size")
    refuse(lambda: Session(Animator(model, PICTURE), size=size), "size")


CROPS: list[Any] = [[], [(0, 0, 8, 8), (60, 60, 9, 9)], [None], ["auto", "face"], [(0, 0, 8)], {}, [[]], "everything"]


@pytest.mark.parametrize("value", CROPS, ids=repr)
def test_several_crops(model: LivePortrait, animator: Animator, value: Any) -> None:
    before = animator.source
    refuse(lambda: Animator(model, PICTURE, crop=value, paste_back=True), "crop")
    refuse(lambda: animator.set_source(PICTURE, value), "crop")
    assert animator.source is before


def test_a_broken_path_is_named(model: LivePortrait, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    for path in (tmp_path / "missing.png", tmp_path / "empty.png", tmp_path, "\0", "x" * 5000):
        refuse(lambda path=path: Animator(model, path), "picture")


def test_the_animator_goes_on_afterwards(animator: Animator) -> None:
    """After all that was refused above it answers as a new one."""
    frame: Frame = draw_portrait(48, yaw=10)
    animator.reset()
    fresh = Animator(animator.model, PICTURE, crop=(4, 4, 50, 50), paste_back=True)
    assert np.array_equal(animator.step(frame), fresh.step(frame))
