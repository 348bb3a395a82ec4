"""Between the motion extractor and the warping module: raw heads to driving keypoints, as published and as fused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lpkernels.animate._plan import pack
from lpkernels.animate.motion import refine_motion, source_keypoints
from lpkernels.animate.retarget import MotionOptions, drive
from lpkernels.fused.stitching import KeypointPath, SourceKeypoints
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.ops.keypoint_transform import heads_size


class PublishedKeypoints(nn.Module):
    """The published code's way: bins to angles, relative motion, stitching; heads (B, 6K + 3 bins + 4) -> (B, K, 3).

    Keypoints stay float32 and out of autocast, as in the original; a converter may lower the stitching MLP.

    Args:
        heads: rows of the source and of the first driving frame.
    """

    def __init__(self, model: LivePortrait, heads: Tensor) -> None:
        super().__init__()
        self._sizes = head_sizes(model.config)
        self.network = model.stitching_retargeting_module["stitching"]
        motions = refine_motion(self._split(heads))
        self._source, self._first = motions[0], motions[1]
        self._x_s = source_keypoints(self._source)
        self._options = MotionOptions()

    def _split(self, heads: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._sizes, heads.split(list(self._sizes.values()), dim=1), strict=True))

    def stitch(self, features: Tensor) -> Tensor:
        return self.network(features.to(next(self.network.parameters()).dtype)).float()

    def retarget_eye(self, features: Tensor) -> Tensor:
        raise NotImplementedError("the benchmark's frame retargets no eyes")

    def retarget_lip(self, features: Tensor) -> Tensor:
        raise NotImplementedError("the benchmark's frame retargets no lips")

    def forward(self, heads: Tensor) -> Tensor:
        with torch.autocast(heads.device.type, enabled=False):
            driving = refine_motion(self._split(heads.float()))
            return drive(self, self._source, self._x_s, driving, self._first, self._options)

    def fused(self) -> Callable[[Tensor], Tensor]:
        """The same in two kernels."""
        assert self._source.kp is not None
        path = KeypointPath(nn.ModuleDict({"stitching": self.network}), bins=self._sizes["pitch"])
        source = SourceKeypoints(self._source.kp, self._x_s, pack(self._source))
        first = pack(self._first)
        return lambda heads: path(heads, source, first)[0]


def head_sizes(config: LivePortraitConfig) -> dict[str, int]:
    """Width of each of the motion extractor's heads, in their order."""
    bins, coordinates = config.motion_extractor.num_bins, 3 * config.num_kp
    sizes = {"pitch": bins, "yaw": bins, "roll": bins, "t": 3, "exp": coordinates, "scale": 1, "kp": coordinates}
    assert sum(sizes.values()) == heads_size(config.num_kp, bins)
    return sizes
