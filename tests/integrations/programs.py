"""Programs to accelerate: the classes and calls of the original and of what is built on it, around tiny networks."""

from __future__ import annotations

import contextlib
import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels.integrations._patch import patch_of
from tests.fused.networks import relative_error, tiny

NETWORKS = ("appearance_feature_extractor", "motion_extractor", "warping_module", "spade_generator")


def network(name: str) -> nn.Module:
    """One network with weights of its own."""
    return copy.deepcopy(tiny().get_submodule(name))


def stitching() -> dict[str, nn.Module]:
    return dict(copy.deepcopy(tiny().stitching_retargeting_module).items())


class LivePortraitWrapper:
    """As the original's: five attributes, and calls under no_grad and autocast."""

    device = "cpu"

    def __init__(self, inference_cfg: SimpleNamespace) -> None:
        self.inference_cfg = inference_cfg
        self._load()

    def _load(self) -> None:
        self.appearance_feature_extractor = network("appearance_feature_extractor")
        self.motion_extractor = network("motion_extractor")
        self.warping_module: Any = network("warping_module")
        self.spade_generator: Any = network("spade_generator")
        self.stitching_retargeting_module = stitching()

    def inference_ctx(self) -> Any:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.inference_cfg.half)

    def extract_feature_3d(self, x: Tensor) -> Tensor:
        with torch.no_grad(), self.inference_ctx():
            return self.appearance_feature_extractor(x).float()

    def get_kp_info(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), self.inference_ctx():
            info = self.motion_extractor(x)
            for key, value in info.items():
                info[key] = value.float()
        info["kp"] = info["kp"].view(len(x), -1, 3)
        return info

    def warp_decode(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), self.inference_ctx():
            answer = self.warping_module(feature_3d, kp_source=kp_source, kp_driving=kp_driving)
            answer["out"] = self.spade_generator(feature=answer["out"])
            for key, value in answer.items():
                answer[key] = value.float()
        return answer


class LivePortraitWrapperAnimal(LivePortraitWrapper):
    """As the original's: a constructor of its own that does not call its parent's."""

    def __init__(self, inference_cfg: SimpleNamespace) -> None:
        self.inference_cfg = inference_cfg
        self._load()


class LivePortraitPipeline:
    def __init__(self, inference_cfg: SimpleNamespace) -> None:
        self.live_portrait_wrapper = LivePortraitWrapper(inference_cfg=inference_cfg)
        self.cropper = object()


class LivePortraitPipelineAnimal:
    def __init__(self, inference_cfg: SimpleNamespace) -> None:
        self.live_portrait_wrapper_animal = LivePortraitWrapperAnimal(inference_cfg=inference_cfg)


class ComfyWrapper(LivePortraitWrapper):
    """As in ComfyUI's packages: the networks come as arguments, and nothing is said about gradients."""

    def __init__(self, *networks: Any, cfg: Any = None) -> None:
        names = (*NETWORKS, "stitching_retargeting_module")
        for name, value in zip(names, networks, strict=True):
            setattr(self, name, value)
        self.cfg = cfg

    def inference_ctx(self) -> Any:
        return contextlib.nullcontext()


class DownloadAndLoadModels:
    """A node that loads: it keeps the networks and gives a pipeline around them."""

    def loadmodel(self) -> tuple[SimpleNamespace]:
        self.appearance_feature_extractor = network("appearance_feature_extractor")
        self.motion_extractor = network("motion_extractor")
        self.warping_module = network("warping_module")
        self.spade_generator = network("spade_generator")
        self.stich_retargeting_module = stitching()
        parts = [getattr(self, name) for name in NETWORKS]
        return (SimpleNamespace(live_portrait_wrapper=ComfyWrapper(*parts, self.stich_retargeting_module)),)


class Engine:
    """Loads at first use, into an attribute of the class's."""

    pipeline: Any = None

    def get_pipeline(self) -> Any:
        if self.pipeline is None:
            self.pipeline = ComfyWrapper(*(network(name) for name in NETWORKS), {"stitching": stitching()["stitching"]})
        return self.pipeline


def wrapper(*, half: bool = False, device: str = "cpu") -> LivePortraitWrapper:
    made = LivePortraitWrapper(SimpleNamespace(half=half))
    made.device = device
    for name in NETWORKS:
        getattr(made, name).to(device)
    return made


def frame(program: Any, seed: int = 0) -> dict[str, Tensor]:
    """What a program answers on one picture: its motion, its feature volume, and a frame."""
    generator = torch.Generator().manual_seed(seed)
    image, kp_source = torch.rand(1, 3, 64, 64, generator=generator), 0.4 * torch.randn(1, 21, 3, generator=generator)
    kp_driving = kp_source + 0.05 * torch.randn(1, 21, 3, generator=generator)
    device = next(program.spade_generator.parameters()).device
    image, kp_source, kp_driving = (tensor.to(device) for tensor in (image, kp_source, kp_driving))
    info, feature_3d = program.get_kp_info(image), program.extract_feature_3d(image)
    return {**info, "feature_3d": feature_3d, **program.warp_decode(feature_3d, kp_source, kp_driving)}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        if tolerance:
            assert relative_error(actual[name], value) < tolerance, name
        else:
            assert torch.equal(actual[name], value), name


def patched(target: Any) -> list[str]:
    return [name for name in NETWORKS if patch_of(getattr(target, name)) is not None]
