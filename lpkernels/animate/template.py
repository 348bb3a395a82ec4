"""Motion templates: the motion of a driving clip without its pictures.

Read from the original's pickles (``.pkl``, older and newer keys) and from safetensors; written as safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lpkernels.animate import _unpickle
from lpkernels.animate._files import existing_file, reason, replacing
from lpkernels.animate.motion import Motion
from lpkernels.errors import InputError, LpkernelsError

# The original's own default for templates that do not say.
DEFAULT_FPS = 25.0
MAX_FPS = 1000.0
# A pickle may name one array over and over: without limits a small file could fill the memory.
MAX_PICKLED_FRAMES = 100_000
MAX_PICKLED_KEYPOINTS = 128

_PICKLES, _SAFETENSORS = (".pkl", ".pickle"), (".safetensors",)
_METADATA_KEY, _VERSION = "lpkernels.motion_template", 1
# Shapes without the frames' dimension; K is any number of keypoints, the same everywhere.
_REQUIRED: dict[str, tuple[int | str, ...]] = {"R": (3, 3), "exp": ("K", 3), "t": (3,), "scale": (1,)}
_OPTIONAL: dict[str, tuple[int | str, ...]] = {"kp": ("K", 3), "x_s": ("K", 3), "c_eyes": (2,), "c_lip": (1,)}
_OLDER_KEYS = {"R": "R_d", "c_eyes_lst": "c_d_eyes_lst", "c_lip_lst": "c_d_lip_lst"}


@dataclass(frozen=True, eq=False)
class MotionTemplate:
    """The motion of N frames; float32 tensors.

    Attributes:
        n_frames: N, at least 1.
        fps: frames per second.
        R: head rotation (N, 3, 3), to be multiplied from the right.
        exp: expression offsets (N, K, 3).
        t: translation (N, 3).
        scale: (N, 1), positive.
        kp: canonical keypoints (N, K, 3), if known.
        x_s: keypoints in the picture (N, K, 3), if known.
        c_eyes: how far the left and right eye are open, height by width (N, 2), if known.
        c_lip: how far the lips are open, height by width (N, 1), if known.

    Raises:
        InputError: a wrong shape or dtype, or a value that is not finite; the message names key and frame.
    """

    n_frames: int
    fps: float
    R: Tensor
    exp: Tensor
    t: Tensor
    scale: Tensor
    kp: Tensor | None = None
    x_s: Tensor | None = None
    c_eyes: Tensor | None = None
    c_lip: Tensor | None = None

    def __post_init__(self) -> None:
        if not _is_integer(self.n_frames) or self.n_frames < 1:
            raise InputError(f"n_frames must be a whole number of 1 or more, got {_shown(self.n_frames)}")
        if not isinstance(self.fps, Real) or isinstance(self.fps, bool) or not 0 < self.fps <= MAX_FPS:
            raise InputError(f"fps must be a number above 0, at most {MAX_FPS:g}; got {_shown(self.fps)}")
        object.__setattr__(self, "fps", float(self.fps))
        num_kp = _keypoint_count(self.exp)
        for name, shape in {**_REQUIRED, **_OPTIONAL}.items():
            value = getattr(self, name)
            if value is not None or name in _REQUIRED:
                _check_tensor(name, value, (self.n_frames, *(num_kp if size == "K" else size for size in shape)))
        bad = (self.scale[:, 0] <= 0).nonzero()
        if len(bad):
            frame = int(bad[0])
            raise InputError(f"scale, frame {frame}: must be positive, got {self.scale[frame].item():g}")

    def motion(self, index: int) -> Motion:
        """One frame's motion, batch 1.

        Raises:
            IndexError: there is no such frame.
        """
        return Motion(self.kp, self.exp, self.R, self.t, self.scale).select(index)

    def motions(self) -> Iterator[Motion]:
        """Every frame's motion in order, batch 1 each."""
        return (self.motion(index) for index in range(self.n_frames))

    def head(self, count: int) -> MotionTemplate:
        """The first ``count`` frames, or all where there are no more."""
        tensors = {name: value[:count] for name, value in self.tensors().items()}
        return replace(self, n_frames=min(count, self.n_frames), **tensors)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are known, by name."""
        values = {name: getattr(self, name) for name in (*_REQUIRED, *_OPTIONAL)}
        return {name: value for name, value in values.items() if value is not None}


def load_template(path: str | Path) -> MotionTemplate:
    """Read a motion template: the original's ``.pkl``, or ``.safetensors`` from ``save_template``.

    A pickle is read without running anything in it: NumPy arrays and plain containers are admitted, nothing else. Keys
    that a template does not need are ignored; ``output_fps`` is 25 where it is missing, as in the original.

    Raises:
        InputError: the file is missing, damaged, too large or not a template, or its pickle holds anything else; the
            message names the file, the key, the frame, what was expected and what came.
    """
    path = existing_file(path, "motion template")
    suffix = path.suffix.lower()
    if suffix not in _PICKLES + _SAFETENSORS:
        raise InputError(f"motion template {path} must end in .pkl or .safetensors, got {suffix or 'no suffix'!r}")
    try:
        return _from_pickle(path) if suffix in _PICKLES else _from_safetensors(path)
    except InputError as error:
        raise InputError(f"motion template {path}: {error}") from error
    except OSError as error:
        raise InputError(f"motion template {path} cannot be read: {reason(error)}") from error


def save_template(path: str | Path, template: MotionTemplate) -> None:
    """Write a motion template as safetensors; the file appears under its name only when it is complete.

    Raises:
        InputError: the name does not end in .safetensors, or the folder does not exist.
        LpkernelsError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SAFETENSORS:
        raise InputError(f"motion template {path} must end in .safetensors, got {path.suffix or 'no suffix'!r}")
    header = {"version": _VERSION, "n_frames": int(template.n_frames), "fps": float(template.fps)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in template.tensors().items()}
    content = safetensors.torch.save(tensors, {_METADATA_KEY: json.dumps(header)})
    with replacing(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise LpkernelsError(f"cannot write motion template {path}: {reason(error)}") from error


def _from_safetensors(path: Path) -> MotionTemplate:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            # Out of the mapped file, which may be changed or truncated later.
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    except SafetensorError as error:
        raise InputError(f"the file is damaged or truncated: {reason(error)}") from error
    if _METADATA_KEY not in metadata:
        raise InputError(f"expected metadata {_METADATA_KEY!r}, got {sorted(metadata)}: not a motion template")
    try:
        header = json.loads(metadata[_METADATA_KEY])
        version, n_frames, fps = (header[key] for key in ("version", "n_frames", "fps"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("metadata must hold version, n_frames and fps as JSON") from error
    if version != _VERSION:
        raise InputError(f"version must be {_VERSION}, got {_shown(version)}: written by a later lpkernels?")
    missing, unknown = _REQUIRED.keys() - tensors, tensors.keys() - _REQUIRED - _OPTIONAL.keys()
    if missing or unknown:
        raise InputError(f"keys must be {', '.join(_REQUIRED)}; missing {sorted(missing)}, unknown {sorted(unknown)}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{name} must have a float dtype, got {tensor.dtype}")
    return MotionTemplate(n_frames, fps, **{name: tensor.float() for name, tensor in tensors.items()})


def _from_pickle(path: Path) -> MotionTemplate:
    size = path.stat().st_size
    if size > _unpickle.MAX_BYTES:
        raise InputError(f"the pickle must have at most {_unpickle.MAX_BYTES} bytes, got {size}")
    content = _unpickle.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise InputError(f"expected a dict with n_frames and motion, got {type(content).__name__}")
    for key in ("n_frames", "motion"):
        if key not in content:
            raise InputError(f"key {key!r} is missing, got {_key_list(content)}")
    n_frames, motion = content["n_frames"], _frame_list("motion", content["motion"])
    if not _is_integer(n_frames) or n_frames != len(motion):
        raise InputError(f"n_frames must be the number of frames in motion, {len(motion)}; got {_shown(n_frames)}")
    tensors = _motion_tensors(motion) | _ratio_tensors(content, len(motion))
    return MotionTemplate(len(motion), content.get("output_fps", DEFAULT_FPS), **tensors)


def _motion_tensors(motion: list[Any]) -> dict[str, Tensor]:
    """R, exp, t, scale and, where the first frame has them, kp and x_s; all frames must have what the first has."""
    for frame, item in enumerate(motion):
        if not isinstance(item, dict):
            raise InputError(f"motion, frame {frame}: expected a dict, got {type(item).__name__}")
    num_kp = _keypoint_count(motion[0].get("exp"))
    if isinstance(num_kp, int) and num_kp > MAX_PICKLED_KEYPOINTS:
        raise InputError(f"exp, frame 0: expected at most {MAX_PICKLED_KEYPOINTS} keypoints, got {num_kp}")
    tensors = {}
    for name, shape in (_REQUIRED | {name: _OPTIONAL[name] for name in ("kp", "x_s") if name in motion[0]}).items():
        key = _present_key(name, motion[0])
        for frame, item in enumerate(motion):
            if key not in item:
                raise InputError(f"motion, frame {frame}: key {key!r} is missing, got {_key_list(item)}")
        sizes = (num_kp if size == "K" else size for size in shape)
        tensors[name] = _joined(key, [item[key] for item in motion], (1, *sizes))
    return tensors


def _ratio_tensors(content: dict[str, Any], n_frames: int) -> dict[str, Tensor]:
    """c_eyes and c_lip, where the template has them."""
    tensors = {}
    for name in ("c_eyes", "c_lip"):
        key = _present_key(f"{name}_lst", content)
        if key in content:
            frames = _frame_list(key, content[key])
            if len(frames) != n_frames:
                raise InputError(f"{key} must have one entry a frame, {n_frames}; got {len(frames)}")
            tensors[name] = _joined(key, frames, (1, *_OPTIONAL[name]))
    return tensors


def _present_key(name: str, content: Mapping[str, Any]) -> str:
    """The newer key, or the older one where only that is there."""
    older = _OLDER_KEYS.get(name, name)
    return older if name not in content and older in content else name


def _frame_list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_PICKLED_FRAMES:
        came = f"{len(value)} frames" if isinstance(value, list | tuple) else type(value).__name__
        raise InputError(f"{key} must be a list of 1 to {MAX_PICKLED_FRAMES} frames, got {came}")
    return list(value)


def _joined(key: str, arrays: list[Any], shape: tuple[int | str, ...]) -> Tensor:
    """One float32 tensor (N, ...) of each frame's float array of ``shape`` (1, ...)."""
    for frame, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.shape != shape:
            came = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            expected = "(" + ", ".join(map(str, shape)) + ")"
            raise InputError(f"{key}, frame {frame}: expected a float array {expected}, got {came}")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is reported as that
        return torch.from_numpy(np.concatenate(arrays).astype(np.float32))


def _check_tensor(name: str, value: object, shape: tuple[int | str, ...]) -> None:
    expected = "(" + ", ".join(map(str, shape)) + ")"
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        came = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} must be a float32 tensor {expected}, got {came}")
    if tuple(value.shape) != shape:
        raise InputError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
    finite = value.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        frame = int(finite.int().argmin())
        wrong = value[frame][~value[frame].isfinite()][0].item()
        raise InputError(f"{name}, frame {frame}: must be finite, got {wrong}")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _keypoint_count(exp: object) -> int | str:
    """K of an (N, K, 3) tensor or array, or the letter where there is none."""
    return exp.shape[1] or "K" if isinstance(exp, Tensor | np.ndarray) and exp.ndim == 3 else "K"


def _key_list(content: Mapping[str, Any]) -> str:
    """The keys that came, short and printable."""
    return ascii(", ".join(sorted(content)[:20]))[:200]


def _shown(value: object) -> str:
    """A value of the file for a message: numbers in full unless they are huge, of the rest the type."""
    if isinstance(value, Real) and not (isinstance(value, Integral) and abs(int(value)) > 2**63):
        return repr(value)
    return type(value).__name__
