"""The five networks rebuilt for speed, behind the interface of ``models.LivePortrait``."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lpkernels.fused import _describe, _finite
from lpkernels.fused.appearance_feature_extractor import FusedAppearanceFeatureExtractor
from lpkernels.fused.motion_extractor import FusedMotionExtractor
from lpkernels.fused.spade_decoder import FusedSPADEDecoder
from lpkernels.fused.warping_network import FusedWarpingNetwork, WarpSource
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.models.pixels import resize_uint8
from lpkernels.models.portrait_model import PortraitModel


class FusedLivePortrait(PortraitModel[WarpSource]):
    """LivePortrait's networks with folded norms, prepacked weights and fused ops; made by ``lpkernels.optimize``.

    The same methods and checks as the model it is made from, and the same float32 edges; inside, activations are
    channels-last in ``dtype``. The stitching and retargeting MLPs stay float32. The baseline is left as it is, and none
    of its tensors is kept.

    Args:
        baseline: any compute dtype; its float32 parameters are what counts. The layers are made on its device.
        dtype: of activations and weights: float16, bfloat16 or float32.
    """

    def __init__(self, baseline: LivePortrait, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self._dtype = baseline.config, dtype
        self._checks: list[RemovableHandle] = []
        extractor = baseline.appearance_feature_extractor
        self.appearance_feature_extractor = FusedAppearanceFeatureExtractor(extractor, dtype)
        self.motion_extractor = FusedMotionExtractor(baseline.motion_extractor, dtype)
        self.warping_module = FusedWarpingNetwork(baseline.warping_module, dtype)
        self.spade_generator = FusedSPADEDecoder(baseline.spade_generator, dtype)
        self.stitching_retargeting_module = copy.deepcopy(baseline.stitching_retargeting_module)
        self.eval()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.warping_module.fourth.weight.device

    def check_finite(self, on: bool = True) -> None:
        """Raise LpkernelsError that names the first layer to give inf or NaN, from now on (or no longer).

        For finding an overflow: the check waits for the device after every layer, and sees nothing in a CUDA graph.
        """
        for handle in self._checks:
            handle.remove()
        self._checks = _finite.watch(self) if on else []

    def describe(self) -> str:
        """One line per group of layers: the op, the backend that runs it on the model's device, and why no other does.

        For pictures of the config's size, batch 1. Nothing is computed. Layers that are not listed run in plain
        PyTorch: the appearance feature extractor, once per source, and the MLPs where they are called one by one.
        """
        appearance, device_type = self.config.appearance_feature_extractor, self.device.type
        channels, depth = appearance.reshape_channel, appearance.reshape_depth
        side = self.config.image_size // self.config.feature_stride

        def blank(*shape: int, dtype: torch.dtype = self._dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        compressed = blank(1, depth, side, side, self.config.warping_module.dense_motion_params.compress)
        source = WarpSource(blank(1, depth, side, side, channels), compressed, compressed)
        kp = blank(1, self.config.num_kp, 3, dtype=torch.float32)
        image = blank(1, self.config.appearance_feature_extractor.image_channel, *[self.config.image_size] * 2)
        feature = blank(1, side, side, self.config.spade_generator.feature_channels)
        return _describe.table(
            [
                *_describe.rows("motion_extractor", self.motion_extractor, device_type, image),
                *_describe.named("keypoints", ("keypoint_transform", "stitch_mlp"), device_type),
                *_describe.rows("warping_module", self.warping_module, device_type, source, kp, kp),
                *_describe.rows("spade_generator", self.spade_generator, device_type, feature),
            ]
        )

    def _feature_3d(self, image: Tensor) -> Tensor:
        return self.appearance_feature_extractor(image)

    def _motion(self, image: Tensor) -> dict[str, Tensor]:
        return {name: head.contiguous() for name, head in self.motion_extractor(image).items()}

    def _heads(self, frames: Tensor) -> Tensor:
        size = self.config.image_size
        if tuple(frames.shape[1:3]) == (size, size):
            return self.motion_extractor.heads(frames)
        return torch.cat(list(self.motion_extractor(resize_uint8(frames, size)).values()), dim=1)

    def _warp(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> dict[str, Tensor | None]:
        source = self.warping_module.prepare(feature_3d)
        result = self.warping_module(source, kp_source, kp_driving, want_maps=True)
        return {
            "occlusion_map": None if result.occlusion_map is None else result.occlusion_map[:, None],
            "deformation": result.deformation,
            "out": result.out.permute(0, 3, 1, 2).float().contiguous(),
        }

    def _decode(self, feature: Tensor) -> Tensor:
        return self.spade_generator(feature.permute(0, 2, 3, 1).to(self._dtype).contiguous())

    def _prepare(self, feature_3d: Tensor, kp_source: Tensor) -> WarpSource:
        with torch.autocast(self.device.type, enabled=False):
            return dataclasses.replace(self.warping_module.prepare(feature_3d), kp_source=kp_source)

    def _render(self, source: WarpSource, kp_driving: Tensor, as_uint8: bool) -> Tensor:
        if source.kp_source is None:
            raise ValueError("source must come from prepare_warp: it holds no keypoints")
        with self._network("warping_module", kp_driving):
            feature = self.warping_module(source, source.kp_source, kp_driving)
        with self._network("spade_generator", kp_driving):
            return self.spade_generator(feature, as_uint8)

    def _mlp(self, name: str, features: Tensor) -> Tensor:
        return self.stitching_retargeting_module[name](features)
