"""The golden files as models and arrays, and the comparison every golden test uses."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from tests.golden.weights import make_state_dict

FOLDER = Path(__file__).parent
SEED = "public-1"
IMAGE_SIZE = {"tiny": 64, "full": 256}
# The key under "shapes" in the json, and the module it names.
MODULES = {
    "appearance_feature_extractor": "appearance_feature_extractor",
    "motion_extractor": "motion_extractor",
    "warping_module": "warping_module",
    "spade_generator": "spade_generator",
    "stitching": "stitching_retargeting_module.stitching",
    "eye": "stitching_retargeting_module.eye",
    "lip": "stitching_retargeting_module.lip",
}


def read_json(name: str) -> dict:
    """The json of ``tiny`` or ``full``: ``config`` and ``shapes``."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@functools.cache
def load_golden(name: str) -> tuple[LivePortraitConfig, LivePortrait, dict[str, np.ndarray]]:
    """(config, float32 model on the CPU, arrays) of ``tiny`` or ``full``, made once per process: change nothing."""
    data = read_json(name)
    config = LivePortraitConfig.from_dict({"image_size": IMAGE_SIZE[name], **data["config"]})
    with torch.device("meta"):
        model = LivePortrait(config)
    for key, module in MODULES.items():
        state = make_state_dict(data["shapes"][key], f"{SEED}/{key}")
        model.get_submodule(module).load_state_dict(
            {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}, assign=True
        )
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return config, model, dict(arrays)


def draw(tag: str, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """A single-module check's input: ``scale`` times standard normal numbers of the stream called ``tag``."""
    stream = np.random.RandomState(zlib.crc32(f"{SEED}/{tag}".encode()))
    return torch.from_numpy((scale * stream.standard_normal(shape)).astype(np.float32))


def picture(name: str, arrays: Mapping[str, np.ndarray]) -> Tensor:
    """A stored uint8 picture as the networks read it: (1, 3, H, W) float32 in 0..1."""
    return torch.from_numpy(arrays[name]).permute(2, 0, 1)[None].float() / 255


def compare(name: str, tensor: Tensor, arrays: Mapping[str, np.ndarray], tolerance: float = 1e-4) -> float:
    """Assert that ``tensor`` matches the array ``name``; return the relative error |tensor - array| / |array|.

    An array with a ``.step`` holds every step-th element of the flattened tensor of shape ``.shape``.
    """
    expected = arrays[name].astype(np.float64)
    came = tensor.detach().cpu().double().numpy()
    if f"{name}.step" in arrays:
        assert came.shape == tuple(arrays[f"{name}.shape"]), f"{name}: shape {came.shape}"
        came = came.reshape(-1)[:: int(arrays[f"{name}.step"])]
    assert came.shape == expected.shape, f"{name}: shape {came.shape}, expected {expected.shape}"
    error = float(np.linalg.norm(came - expected) / np.linalg.norm(expected))
    assert error <= tolerance, f"{name}: relative error {error:.3g} > {tolerance:.3g}"
    return error


def compare_rgb(name: str, image: np.ndarray | Tensor, arrays: Mapping[str, np.ndarray]) -> int:
    """Assert that the uint8 (H, W, 3) ``image`` is within 1 of the array ``name``; return the largest difference.

    ``full`` stores every fifth row and column.
    """
    expected = arrays[name].astype(np.int16)
    came = np.asarray(image).astype(np.int16)
    step = -(-came.shape[0] // expected.shape[0])
    came = came[::step, ::step]
    assert came.shape == expected.shape, f"{name}: shape {came.shape}, expected {expected.shape}"
    worst = int(np.abs(came - expected).max())
    assert worst <= 1, f"{name}: differs by {worst} of 255"
    return worst
