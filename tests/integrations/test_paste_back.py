"""The original's paste_back, replaced in every module of a program's package and put back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lpkernels
from lpkernels.animate.crop import Square, crop_from_square, feathered_mask
from lpkernels.integrations import _paste_back
from lpkernels.ref.paste_back import invert, warp_affine
from tests.integrations import programs
from tests.integrations.programs import NETWORKS

SIZE, HEIGHT, WIDTH = 48, 60, 83
MATRIX = crop_from_square(Square((35.0, 28.0), 40, 11.0), SIZE).M_c2o


def _warp(img: Any, M: Any, height: int, width: int) -> Any:
    warped = warp_affine(torch.from_numpy(img)[None], invert(M[:2].ravel().tolist()), (0, 0, width, height))
    return warped[0].add_(0.5).floor_().numpy()


def originals(img_crop, M_c2o, img_ori, mask_ori):  # type: ignore[no-untyped-def]
    """As the original's, with exact coordinates."""
    warped = _warp(img_crop, M_c2o, *img_ori.shape[:2])
    return np.clip(mask_ori * warped + (1 - mask_ori) * img_ori, 0, 255).astype(np.uint8)


def other(img_crop, mask_ori):  # type: ignore[no-untyped-def]
    return None


@pytest.fixture
def package() -> Iterator[dict[str, Any]]:
    """A program: a package whose pipeline, and the module it took ``paste_back`` from, have the function."""
    names = ("someone", "someone.utils", "someone.utils.crop", "someone.pipeline", "someone.old")
    made: dict[str, Any] = {name: ModuleType(name) for name in names}
    made["someone.utils.crop"].paste_back = made["someone.pipeline"].paste_back = originals
    made["someone.old"].paste_back = other
    for name in ("LivePortraitPipeline", "LivePortraitWrapper"):
        copied = type(name, (getattr(programs, name),), {"__module__": "someone.pipeline"})
        setattr(made["someone.pipeline"], name, copied)
    sys.modules.update(made)
    try:
        yield made
    finally:
        _paste_back._packages.clear()
        for name in [name for name in sys.modules if name == "someone" or name.startswith("someone.")]:
            del sys.modules[name]


def pipeline(package: dict[str, Any], device: str = "cpu") -> Any:
    made = package["someone.pipeline"].LivePortraitPipeline(SimpleNamespace(half=False))
    for name in NETWORKS:
        getattr(made.live_portrait_wrapper, name).to(device)
    return made


def pictures(seed: int = 0) -> tuple[Any, Any, Any]:
    """A smooth crop, a picture, and the crop's mask in it."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    waves = [127 + 120 * np.sin(3 * x + 2 * channel + seed) * np.cos(4 * y) for channel in range(3)]
    crop = np.stack(waves, axis=-1).astype(np.uint8)
    picture = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    levels = (feathered_mask(SIZE) * 255).round().to(torch.uint8)[..., None].expand(-1, -1, 3).numpy()
    return crop, picture, _warp(levels, MATRIX, HEIGHT, WIDTH).astype(np.uint8).astype(np.float32) / 255.0


def difference(answer: Any, expected: Any) -> int:
    assert (answer.dtype, answer.shape) == (np.uint8, expected.shape)
    return int(np.abs(answer.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_answers_as_the_original_within_a_level(package: dict[str, Any], device: str) -> None:
    crop, picture, mask = pictures()
    expected, kept = originals(crop, MATRIX, picture, mask), picture.copy()
    assert difference(picture, expected) > 100, "the picture must show the difference"
    report = lpkernels.accelerate(pipeline(package, device))
    assert report.replaced == (*NETWORKS, "paste_back")
    call = package["someone.pipeline"].paste_back
    for _ in range(2):  # the second time from the kept mask
        assert difference(call(crop, MATRIX, picture, mask), expected) <= 1
    assert np.array_equal(picture, kept)
    other_crop, other_picture, _ = pictures(1)
    answer = call(other_crop, MATRIX, other_picture, mask)
    assert difference(answer, originals(other_crop, MATRIX, other_picture, mask)) <= 1
    assert np.array_equal(answer[mask[..., 0] == 0], other_picture[mask[..., 0] == 0])


def test_every_module_has_it_and_gets_its_own_back(package: dict[str, Any]) -> None:
    made = pipeline(package)
    lpkernels.accelerate(made)
    replaced = package["someone.pipeline"].paste_back
    assert replaced is package["someone.utils.crop"].paste_back is not originals
    assert package["someone.old"].paste_back is other, "a function with other parameters is another function"
    late = ModuleType("someone.late")  # imported while it is replaced
    vars(late)["paste_back"] = replaced
    sys.modules["someone.late"] = late
    report = lpkernels.restore(made)
    assert report.replaced == ()
    assert report.left["someone: paste_back"] == "put back"
    modules = (package["someone.pipeline"], package["someone.utils.crop"], late)
    assert all(module.paste_back is originals for module in modules)
    assert lpkernels.restore(made).left["someone: paste_back"] == "was not replaced"


def test_switched_off_and_on_again(package: dict[str, Any]) -> None:
    made = pipeline(package)
    lpkernels.accelerate(made)
    report = lpkernels.accelerate(made, paste_back=False)
    assert (report.replaced, report.left["someone: paste_back"]) == (NETWORKS, "switched off")
    assert package["someone.pipeline"].paste_back is originals
    assert lpkernels.accelerate(made).replaced == (*NETWORKS, "paste_back")


def test_stays_while_another_object_of_the_package_is_accelerated(package: dict[str, Any]) -> None:
    first, second = pipeline(package), pipeline(package)
    lpkernels.accelerate(first)
    lpkernels.accelerate(second, "bf16")
    report = lpkernels.restore(first)
    assert report.replaced == ("paste_back",)
    assert package["someone.pipeline"].paste_back is not originals
    lpkernels.restore(second)
    assert package["someone.pipeline"].paste_back is originals


def test_nothing_is_replaced_where_no_network_is(package: dict[str, Any]) -> None:
    made = pipeline(package)
    report = lpkernels.accelerate(made, **dict.fromkeys(NETWORKS, False))
    assert report.replaced == ()
    assert package["someone.pipeline"].paste_back is originals
    network = made.live_portrait_wrapper.motion_extractor  # no program's object: networks come from anywhere
    assert lpkernels.accelerate(network).replaced == ("motion_extractor",)
    assert package["someone.pipeline"].paste_back is originals


def wrong(name: str) -> tuple[Any, Any, Any]:
    crop, picture, mask = pictures()
    if name == "a crop of floats":
        crop = crop.astype(np.float32)
    elif name == "a picture of floats":
        picture = picture.astype(np.float64)
    elif name == "a mask whose channels differ":
        mask[30, 30, 1] = 0.0
    elif name == "a mask between levels":
        mask[30, 30] = 0.1234
    elif name == "a mask above 1":
        mask[30, 30] = 2.0
    elif name == "a mask with NaN":
        mask[30, 30] = np.nan
    else:
        assert name == "a mask of float64"
        mask = mask.astype(np.float64)
    return crop, picture, mask


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "name",
    [
        "a crop of floats",
        "a picture of floats",
        "a mask whose channels differ",
        "a mask between levels",
        "a mask above 1",
        "a mask with NaN",
        "a mask of float64",
    ],
)
def test_the_original_answers_what_this_is_not_made_for(package: dict[str, Any], name: str) -> None:
    crop, picture, mask = wrong(name)
    lpkernels.accelerate(pipeline(package))
    answer = package["someone.pipeline"].paste_back(crop, MATRIX, picture, mask)
    assert np.array_equal(answer, originals(crop, MATRIX, picture, mask))


def test_errors_are_the_originals(package: dict[str, Any]) -> None:
    crop, picture, mask = pictures()
    lpkernels.accelerate(pipeline(package))
    with pytest.raises(ValueError, match="broadcast"):
        package["someone.pipeline"].paste_back(crop, MATRIX, picture[:-1], mask)


def test_a_mask_without_a_pixel_and_a_picture_that_is_a_view(package: dict[str, Any]) -> None:
    crop, picture, mask = pictures()
    lpkernels.accelerate(pipeline(package))
    call = package["someone.pipeline"].paste_back
    answer = call(crop, MATRIX, picture, np.zeros_like(mask))
    assert np.array_equal(answer, picture)
    assert not np.shares_memory(answer, picture)
    view, turned = picture[:, ::-1], np.ascontiguousarray(mask)
    assert difference(call(crop, MATRIX, view, turned), originals(crop, MATRIX, view, turned)) <= 1


def test_masks_are_kept_while_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = _paste_back.MaskCache(torch.device("cpu"))
    made: list[int] = []
    make = cache._make
    monkeypatch.setattr(cache, "_make", lambda mask: made.append(id(mask)) or make(mask))
    masks = [pictures()[2] for _ in range(_paste_back.MASKS + 1)]
    for mask in masks:
        cache(mask)
        cache(mask)
    assert len(made) == len(masks)
    assert len(cache._kept) == _paste_back.MASKS
    cache(masks[0])  # the first made room for the last
    assert len(made) == len(masks) + 1
    del mask, masks
    gc.collect()
    cache(pictures()[2])
    assert len(cache._kept) == 1
