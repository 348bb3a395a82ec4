"""Pictures: files to uint8 RGB arrays and back, and cropping."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lpkernels import _checks
from lpkernels.animate._files import existing_file, reason, replacing
from lpkernels.errors import InputError, LpkernelsError

Frame = npt.NDArray[np.uint8]
"""One picture: uint8, (height, width, 3), RGB."""

Box = tuple[int, int, int, int]
"""A part of a picture in pixels: x and y of its upper left corner, width, height."""

Picture = TypeVar("Picture", Frame, Tensor)

MAX_PIXELS = 100_000_000
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# No format whose reader starts another program (EPS) or opens other files.
_READ_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_WRITE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def is_image_path(path: str | Path) -> bool:
    """Whether the name ends like a still picture's."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def is_video_path(path: str | Path) -> bool:
    """Whether the name ends like a video's."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def load_image(path: str | Path) -> Frame:
    """Read a picture as uint8 RGB, (height, width, 3).

    The EXIF orientation is applied, transparency is laid on white, grey and 16-bit pictures become 8-bit RGB, and of
    an animation the first frame is taken.

    Raises:
        InputError: the file is missing, is not a picture, is damaged, or has more than 100 million pixels.
    """
    path = existing_file(path, "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MAX_PIXELS is the limit here, not Pillow's warning
            with Image.open(path, formats=_READ_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise InputError(f"picture {path} is too large: {width}x{height}, at most {MAX_PIXELS:,} pixels")
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"picture {path}: {error}") from None
    except Image.DecompressionBombError:
        raise InputError(f"picture {path} is too large: more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        known = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
        raise InputError(f"{path} is not a picture that can be read ({known})") from None
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, EOFError, struct.error) as error:
        raise InputError(f"picture {path} is damaged: {reason(error)}") from None


def _to_rgb(image: Image.Image) -> Frame:
    if image.mode == "F":
        raise InputError("floating-point pixels are not supported; save the picture with 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def save_image(path: str | Path, image: Frame) -> None:
    """Write a uint8 RGB picture as .png, .jpg or .webp; the file appears only when it is complete.

    Raises:
        InputError: unknown suffix, or the folder does not exist.
        LpkernelsError: the file cannot be written.
    """
    path = Path(path)
    check_image_output(path)
    check_frame("image", image)
    with replacing(path) as temporary:
        try:
            Image.fromarray(np.ascontiguousarray(image)).save(
                temporary, format=_WRITE_FORMATS[path.suffix.lower()], quality=95
            )
        except (OSError, ValueError) as error:  # ValueError: more pixels than the format holds
            raise LpkernelsError(f"cannot write {path}: {reason(error)}") from None


def check_image_output(path: str | Path) -> None:
    """Raise InputError unless ``path`` ends like a picture that ``save_image`` can write."""
    if Path(path).suffix.lower() not in _WRITE_FORMATS:
        raise InputError(f"{path} must end in {', '.join(sorted(_WRITE_FORMATS))} to hold a picture")


def check_frame(name: str, frame: Frame | Tensor) -> None:
    """Raise TypeError or ValueError unless ``frame`` is a uint8 (H, W, 3) array or tensor with at least one pixel."""
    _check_pictures(name, frame, 3, "(height, width, 3)")


def check_frames(name: str, frames: Frame | Tensor) -> None:
    """The same for a batch, (B, H, W, 3) with at least one frame."""
    _check_pictures(name, frames, 4, "(batch, height, width, 3)")


def _check_pictures(name: str, pictures: Frame | Tensor, dims: int, wanted: str) -> None:
    if not isinstance(pictures, np.ndarray | Tensor):
        raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(pictures).__name__}")
    if pictures.dtype not in (np.uint8, torch.uint8):
        kind = str(pictures.dtype).removeprefix("torch.")
        raise TypeError(f"{name} must have dtype uint8 (levels 0 to 255), got {kind}")
    shape = tuple(pictures.shape)
    if len(shape) != dims or shape[-1] != 3:
        hint = "; move the channels last" if len(shape) == dims and shape[-3] == 3 else ""
        raise ValueError(f"{name} must have shape {wanted}, RGB, got {shape}{hint}")
    if 0 in shape:
        raise ValueError(f"{name} must have at least one pixel, got shape {shape}")


def crop(image: Picture, box: Box) -> Picture:
    """Cut ``box`` (x, y, width, height in pixels) out of a picture; a view, nothing is copied.

    Raises:
        InputError: no box of whole pixels, or it leaves the picture.
    """
    x, y, width, height = check_box(box)
    rows, columns = image.shape[:2]
    if x < 0 or y < 0 or x + width > columns or y + height > rows:
        raise InputError(f"crop {x},{y},{width},{height} leaves the picture, which is {columns}x{rows} (x,y,w,h)")
    return image[y : y + height, x : x + width]


def crop_padded(image: Frame, box: Box) -> Frame:
    """``crop`` for a box that may leave the picture: black there.

    Raises:
        InputError: no box of whole pixels, or it holds none of the picture.
    """
    x, y, width, height = check_box(box)
    rows, columns = image.shape[:2]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, columns), min(y + height, rows)
    if right <= left or bottom <= top:
        raise InputError(f"crop {x},{y},{width},{height} holds no pixel of the picture, which is {columns}x{rows}")
    if (right - left, bottom - top) == (width, height):
        return image[top:bottom, left:right]
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top - y : bottom - y, left - x : right - x] = image[top:bottom, left:right]
    return padded


def check_box(box: Box) -> Box:
    """The box as plain numbers; InputError unless it is x, y, width, height in whole pixels, the last two positive."""
    x, y, width, height = _checks.integers("crop", box, "x", "y", "width", "height")
    if width < 1 or height < 1:
        raise InputError(f"crop {x},{y},{width},{height} is empty: width and height must be at least 1")
    return x, y, width, height


def to_batch(name: str, frame: Frame | Tensor, device: torch.device) -> Tensor:
    """A checked uint8 (H, W, 3) frame as a batch of one, (1, H, W, 3), on ``device``."""
    check_frame(name, frame)
    if isinstance(frame, np.ndarray):
        frame = torch.from_numpy(np.require(frame, requirements=["C", "W"]))
    return frame.to(device)[None]
