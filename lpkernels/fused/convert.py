"""From a baseline model or network to its fused form: the one call that callers make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels.errors import InputError
from lpkernels.fused.appearance_feature_extractor import FusedAppearanceFeatureExtractor
from lpkernels.fused.live_portrait import FusedLivePortrait
from lpkernels.fused.motion_extractor import FusedMotionExtractor
from lpkernels.fused.spade_decoder import FusedSPADEDecoder
from lpkernels.fused.warping_network import FusedWarpingNetwork
from lpkernels.models.appearance_feature_extractor import AppearanceFeatureExtractor
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.models.motion_extractor import MotionExtractor
from lpkernels.models.spade_generator import SPADEDecoder
from lpkernels.models.stitching_retargeting_network import StitchingRetargetingNetwork
from lpkernels.models.warping_network import WarpingNetwork

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def optimize(model: LivePortrait, precision: str = "fp16") -> FusedLivePortrait:
    """The model rebuilt for speed: the same methods, norms folded into prepacked weights, fused ops, channels-last.

    >>> model = lpkernels.optimize(lpkernels.LivePortrait.from_pretrained("pretrained_weights", device="cuda"))
    >>> print(model.describe())  # which op and backend every layer runs on this device, and why

    Args:
        model: on any device, in any compute dtype; it is left as it is and may be dropped afterwards.
        precision: of activations and weights: ``fp16``; ``bf16``, whose range is that of float32 (for weights that
            overflow fp16; ``FusedLivePortrait.check_finite`` finds out); ``fp32``. Coordinates, statistics, softmax
            and sums are float32 in all of them.

    Raises:
        InputError: another precision, or a model that is no ``LivePortrait``.
    """
    if not isinstance(model, LivePortrait):
        raise InputError(f"model must be a lpkernels.LivePortrait, got {type(model).__name__}")
    return FusedLivePortrait(model, _dtype(precision))


def build(network: nn.Module, precision: str = "fp16") -> Callable[..., Any]:
    """One network's fused form with the baseline's arguments and answer, for measuring it alone.

    Answers keep the baseline's shapes; their strides and dtype are those that the next fused network reads without a
    copy.

    Raises:
        InputError: another precision, or a network that has no fused form.
    """
    dtype = _dtype(precision)
    if isinstance(network, WarpingNetwork):
        return _warping(FusedWarpingNetwork(network, dtype))
    if isinstance(network, SPADEDecoder):
        return _decoder(FusedSPADEDecoder(network, dtype))
    if isinstance(network, MotionExtractor):
        return FusedMotionExtractor(network, dtype)
    if isinstance(network, AppearanceFeatureExtractor):
        return FusedAppearanceFeatureExtractor(network, dtype)
    if isinstance(network, StitchingRetargetingNetwork):
        return copy.deepcopy(network)
    raise InputError(f"not built yet: {type(network).__name__} has no fused form")


def _warping(fused: FusedWarpingNetwork) -> Callable[..., dict[str, Tensor | None]]:
    def run(feature_3d: Tensor, kp_driving: Tensor, kp_source: Tensor) -> dict[str, Tensor | None]:
        result = fused(fused.prepare(feature_3d), kp_source.float(), kp_driving.float(), want_maps=True)
        occlusion_map = None if result.occlusion_map is None else result.occlusion_map[:, None]
        out = result.out.permute(0, 3, 1, 2)
        return {"occlusion_map": occlusion_map, "deformation": result.deformation, "out": out}

    return run


def _decoder(fused: FusedSPADEDecoder) -> Callable[[Tensor], Tensor]:
    return lambda feature: fused(feature.permute(0, 2, 3, 1).to(fused.dtype).contiguous())


def _dtype(precision: str) -> torch.dtype:
    if precision not in PRECISIONS:
        raise InputError(f"not built yet: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return PRECISIONS[precision]
