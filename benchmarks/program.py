"""The original LivePortrait program around random networks: its wrapper, and its ``execute`` on a clip.

The loops run as the checkout has them. Files, face detection and encoding are replaced by pictures in memory.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.checkout import Checkout
from benchmarks.program_media import INPUT, Media
from lpkernels.animate.crop import feathered_mask
from lpkernels.animate.image import Frame
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.models.motion_extractor import MotionExtractor
from lpkernels.models.random_weights import make_state_dict

NETWORKS = {  # attribute of the wrapper -> letter of its checkpoint
    "appearance_feature_extractor": "F",
    "motion_extractor": "M",
    "warping_module": "W",
    "spade_generator": "G",
}
MLPS = {"stitching": "retarget_shoulder", "lip": "retarget_mouth", "eye": "retarget_eye"}
LANDMARKS = 203


class Program:
    """The original's pipeline with the weights of ``model``, and what it needs to run on ``media``.

    Attributes:
        wrapper: its ``LivePortraitWrapper``, in autocast FP16 on a GPU as it ships; in FP32 on the CPU.
        pastes: whether the animated face is pasted back, for which it needs cv2.
        media: what it animates.
    """

    def __init__(self, checkout: Checkout, model: LivePortrait, folder: Path, media: Media) -> None:
        self._folder, self._module = folder, checkout.module("live_portrait_pipeline")
        self.pastes = "cv2" not in checkout.missing and importlib.util.find_spec("cv2") is not None
        self.media = media
        cfg = checkout.module("config.inference_config").InferenceConfig(**self._settings(model, folder))
        self._module.Cropper = lambda crop_cfg: _Cropper(media)
        self._pipeline = self._module.LivePortraitPipeline(inference_cfg=cfg, crop_cfg=SimpleNamespace())
        self.wrapper = self._pipeline.live_portrait_wrapper
        for name in ("source.png", "driving.mp4"):
            (folder / name).touch()

    def _settings(self, model: LivePortrait, folder: Path) -> dict[str, Any]:
        """Fields of the ``InferenceConfig``; the networks are written where it looks for them."""
        on_gpu, size = model.device.type == "cuda", model.config.image_size
        levels = (255 * feathered_mask(model.config.output_size)).round().to(torch.uint8)  # as cv2 reads a picture
        mask = levels[..., None].expand(-1, -1, 3).contiguous().numpy()
        write_networks(model, folder)
        return {
            "models_config": str(folder / "models.yaml"),
            **{f"checkpoint_{letter}": str(folder / f"{name}.pth") for name, letter in NETWORKS.items()},
            "checkpoint_S": str(folder / "stitching.pth"),
            "flag_use_half_precision": on_gpu,
            "flag_force_cpu": not on_gpu,
            "device_id": model.device.index or 0,
            "flag_do_crop": self.pastes,
            "flag_pasteback": self.pastes,
            "input_shape": (size, size),
            "mask_crop": mask,
            "lip_array": np.zeros((1, 21, 3), np.float32),  # of pictures that drive; the clip does not
        }

    def execute(self, count: int | None = None) -> tuple[list[float], list[Frame]]:
        """The program's ``execute`` on the first ``count`` frames.

        Returns:
            Milliseconds of each frame in its two loops together, the one that reads motion and the one that animates;
            and its animated squares, uint8 (S, S, 3), before any is pasted back.
        """
        frames, loops, squares = self.media.frames[:count], list[list[float]](), list[Frame]()
        parse_output = self.wrapper.parse_output

        def track(items: Iterable[Any], *_: Any, **__: Any) -> Iterator[Any]:
            loops.append([])
            for item in items:
                start = time.perf_counter()
                yield item
                loops[-1].append((time.perf_counter() - start) * 1e3)  # either body ends with a copy to the host

        def parsed(out: Tensor) -> np.ndarray:
            pictures: np.ndarray = parse_output(out)
            squares.extend(pictures)
            return pictures

        replaced = {
            "track": track,
            "load_image_rgb": lambda path: self._picture(),
            "resize_to_limit": lambda picture, *_: picture,
            "load_video": lambda path: frames,
            "get_fps": lambda path: 25,
            "is_square_video": lambda path: True,
            "dump": lambda *_: None,
            "concat_frames": lambda *_: [],
            "images2video": lambda *_, **__: None,
            "has_audio_stream": lambda path: False,
            "log": lambda *_, **__: None,
        }
        before = {name: getattr(self._module, name) for name in replaced}
        arguments = SimpleNamespace(
            source=str(self._folder / "source.png"),
            driving=str(self._folder / "driving.mp4"),
            output_dir=str(self._folder),
            flag_crop_driving_video=False,
            audio_priority="driving",
        )
        try:
            vars(self._module).update(replaced)
            self.wrapper.parse_output = parsed
            self._pipeline.execute(arguments)
        finally:
            vars(self._module).update(before)
            del self.wrapper.parse_output
        motion, animation = loops
        return [one + other for one, other in zip(motion, animation, strict=True)], squares

    def _picture(self) -> Frame:
        """What the source's file holds: the face, or the whole picture that it is pasted into."""
        return self.media.picture if self.pastes else self.media.source


class _Cropper:
    """Stands in for face detection: the face is where the media have it, and its landmarks are any."""

    def __init__(self, media: Media) -> None:
        self.crop_cfg = SimpleNamespace()
        self._media = media
        self._landmarks = np.random.default_rng(0).uniform(0, INPUT, (LANDMARKS, 2)).astype(np.float32)

    def crop_source_image(self, picture: Frame, crop_cfg: Any) -> dict[str, Any]:
        return {
            "img_crop_256x256": self._media.source,
            "lmk_crop": self._landmarks,
            "M_c2o": self._media.crop.M_c2o,
        }

    def calc_lmk_from_cropped_image(self, picture: Frame) -> np.ndarray:
        return self._landmarks

    def calc_lmks_from_cropped_video(self, frames: Sequence[Frame]) -> list[np.ndarray]:
        return [self._landmarks] * len(frames)


def write_networks(model: LivePortrait, folder: Path) -> None:
    """``models.yaml`` (as JSON, which is YAML) and a ``.pth`` for each network; M in the original's one size."""
    config = model.config
    sizes: dict[str, Any] = {f"{name}_params": dataclasses.asdict(getattr(config, name)) for name in NETWORKS}
    sizes["motion_extractor_params"] = {"num_kp": config.num_kp, "backbone": "convnextv2_tiny"}
    mlps = model.stitching_retargeting_module
    sizes["stitching_retargeting_module_params"] = {name: _sizes(dict(mlps[name].state_dict())) for name in MLPS}
    (folder / "models.yaml").write_text(json.dumps({"model_params": sizes}))
    for name in NETWORKS:
        state = dict(model.get_submodule(name).state_dict())
        if name == "motion_extractor" and config.motion_extractor != LivePortraitConfig.full().motion_extractor:
            with torch.device("meta"):
                network = MotionExtractor(LivePortraitConfig.full().motion_extractor)
            state = make_state_dict(network, "motion")
        torch.save({key: tensor.cpu() for key, tensor in state.items()}, folder / f"{name}.pth")
    states = {key: {name: t.cpu() for name, t in mlps[mlp].state_dict().items()} for mlp, key in MLPS.items()}
    torch.save(states, folder / "stitching.pth")


def _sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The original's arguments of an MLP, read off its weights."""
    weights = [tensor for tensor in state.values() if tensor.ndim == 2]
    return {
        "input_size": weights[0].shape[1],
        "hidden_sizes": [weight.shape[0] for weight in weights[:-1]],
        "output_size": weights[-1].shape[0],
    }
