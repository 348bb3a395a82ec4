"""Pictures: reading every mode, refusing what is not one, cropping, and the resize in front of the networks."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lpkernels.animate import image as image_module
from lpkernels.animate.image import check_frame, crop, load_image, save_image
from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models.pixels import resize_uint8, to_uint8

RAMP = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_png_round_trip(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", RAMP)
    assert np.array_equal(load_image(tmp_path / "a.png"), RAMP)
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_come_close(tmp_path: Path, suffix: str) -> None:
    picture = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    save_image(tmp_path / f"a{suffix}", picture)
    assert np.abs(load_image(tmp_path / f"a{suffix}").astype(int) - picture).max() <= 6


def test_save_replaces_and_keeps_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    save_image(path, RAMP)
    (tmp_path / "plain").write_bytes(b"")
    assert np.array_equal(load_image(path), RAMP)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "a.png"), np.rot90(RAMP, -1))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded[0, 0].tolist() == [10, 20, 30]
    assert loaded[1, 1].tolist() == [255, 255, 255]


def test_transparent_palette(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1), 1)
    picture.putpalette([0, 0, 0, 9, 8, 7])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "a.png", transparency=0)
    assert load_image(tmp_path / "a.png").tolist() == [[[255, 255, 255], [9, 8, 7]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = ".tif" if mode in ("CMYK", "YCbCr") else ".png"
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(tmp_path / f"a{suffix}")
    loaded = load_image(tmp_path / f"a{suffix}")
    assert loaded.shape == (3, 5, 3)
    assert loaded.dtype == np.uint8
    assert loaded.min() >= 254


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_floating_point_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif.*floating-point"):
        load_image(tmp_path / "a.tif")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    save_image(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, words in [
        ("missing.png", "does not exist"),
        ("empty.png", "empty"),
        ("text.png", "not a picture"),
        ("cut.png", "damaged"),
        ("script.png", "not a picture"),
        (".", "not a file"),
        ("x" * 5000, "cannot be looked up"),
        ("nul\0", "nul"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.png"
    save_image(path, np.tile(RAMP, (8, 8, 1)))
    data = bytearray(path.read_bytes())
    data[at % len(data) : at % len(data) + len(junk)] = junk
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        assert load_image(path).shape[2] == 3


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "a.png", RAMP)
    monkeypatch.setattr(image_module, "MAX_PIXELS", 23)
    with pytest.raises(InputError, match="too large: 6x4"):
        load_image(tmp_path / "a.png")


def test_unwritable_outputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in .*\.png"):
        save_image(tmp_path / "a.gif", RAMP)
    with pytest.raises(InputError, match="does not exist"):
        save_image(tmp_path / "no" / "a.png", RAMP)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        save_image(tmp_path / "folder.png", RAMP)
    with pytest.raises(LpkernelsError):
        save_image(tmp_path / "a.webp", np.zeros((1, 20000, 3), np.uint8))  # WebP ends at 16383 pixels
    assert [item.name for item in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        ("text", TypeError, "NumPy array or a torch tensor"),
        (np.zeros((2, 2, 3), np.float32), TypeError, "uint8.*float32"),
        (torch.zeros(2, 2, 3), TypeError, "uint8.*float32"),
        (np.zeros((2, 2), np.uint8), ValueError, r"\(height, width, 3\).*\(2, 2\)"),
        (np.zeros((2, 2, 4), np.uint8), ValueError, r"\(2, 2, 4\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, "channels last"),
        (np.zeros((0, 2, 3), np.uint8), ValueError, "at least one pixel"),
    ],
)
def test_check_frame(frame: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_frame("frame", frame)  # type: ignore[arg-type]


def test_crop() -> None:
    assert np.array_equal(crop(RAMP, (1, 2, 3, 2)), RAMP[2:4, 1:4])
    assert np.array_equal(crop(RAMP, (0, 0, 6, 4)), RAMP)


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, -1, 2, 2), (5, 0, 2, 2), (0, 3, 2, 2), (0, 0, 0, 1), (0, 0, 1, -1)])
def test_crop_outside(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="crop"):
        crop(RAMP, box)


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """The definition, in float64: half-pixel centres, edges repeated, before rounding."""
    result = image.astype(np.float64)
    for axis in (0, 1):
        length = image.shape[axis]
        where = (np.arange(size) + 0.5) * length / size - 0.5
        low = np.floor(where).astype(int)
        weight = (where - low).reshape([-1 if other == axis else 1 for other in range(3)])
        first, second = (np.take(result, np.clip(low + step, 0, length - 1), axis) for step in (0, 1))
        result = first * (1 - weight) + second * weight
    return result


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 48), st.integers(0, 2**31))
def test_resize_is_opencvs_bilinear(height: int, width: int, size: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = resize_uint8(torch.from_numpy(image)[None], size)
    assert resized.shape == (1, 3, size, size)
    assert resized.dtype == torch.float32
    levels = (resized[0] * 255).permute(1, 2, 0).double().numpy()
    assert np.abs(levels - np.round(levels)).max() < 1e-3
    assert np.abs(levels - bilinear(image, size)).max() < 0.5 + 1e-3


def test_resize_rounds_halves_up() -> None:
    image = torch.tensor([[[[0] * 3, [1] * 3], [[1] * 3, [0] * 3]]], dtype=torch.uint8)
    assert (resize_uint8(image, 1) * 255).flatten().tolist() == [1.0, 1.0, 1.0]


def test_resize_leaves_the_right_size_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = torch.from_numpy(image.astype(np.float32) / 255).permute(0, 3, 1, 2)
    assert torch.equal(resize_uint8(torch.from_numpy(image), 32), expected)


def test_resize_checks_its_input() -> None:
    with pytest.raises(TypeError, match=r"images must be a torch\.Tensor"):
        resize_uint8(np.zeros((1, 2, 2, 3), np.uint8), 8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="uint8"):
        resize_uint8(torch.zeros(1, 2, 2, 3), 8)
    with pytest.raises(ValueError, match="images"):
        resize_uint8(torch.zeros(2, 2, 3, dtype=torch.uint8), 8)


def test_to_uint8_clips_and_truncates() -> None:
    values = torch.tensor([-1.0, 0.0, 0.999 / 255, 1.0 / 255, 254.9 / 255, 1.0, 2.0])
    images = values.reshape(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 254, 255, 255]
    assert to_uint8(images).shape == (1, 1, 7, 3)
