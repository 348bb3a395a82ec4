"""What the rest of the program asks of a model of the five networks, with the checks of every argument.

``LivePortrait`` answers with the networks as published, ``lpkernels.fused.FusedLivePortrait`` with those rebuilt for
speed; callers need not know which.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from lpkernels import _checks, trace
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.warp_source import SourceTensors

Source = TypeVar("Source", bound=SourceTensors)
# The motion extractor's stem and its three down-samplings need at least one cell each.
MIN_IMAGE_SIZE = 32


class PortraitModel(nn.Module, Generic[Source]):
    """The networks of LivePortrait (arXiv 2407.03168) behind one interface, for inference.

    Every method takes and returns float32 tensors on ``device`` unless it says otherwise, and needs no gradient. Each
    takes a batch. ``prepare_warp``, ``render`` and ``heads`` neither wait for the device nor branch on values: a CUDA
    graph can hold them.
    """

    config: LivePortraitConfig
    stitching_retargeting_module: nn.ModuleDict
    _dtype: torch.dtype

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the networks compute in."""
        return self._dtype

    @torch.no_grad()
    def extract_feature_3d(self, image: Tensor) -> Tensor:
        """F: image (B, 3, H, W), RGB in 0..1 -> feature volume (B, C, D, H/4, W/4).

        Raises:
            TypeError: not a float tensor.
            ValueError: wrong shape, a side under 32 pixels, another device.
        """
        image = self._image(image)
        with self._network("appearance_feature_extractor", image):
            return self._feature_3d(image)

    @torch.no_grad()
    def extract_motion(self, image: Tensor) -> dict[str, Tensor]:
        """M: image (B, 3, H, W), RGB in 0..1 -> raw heads.

        ``pitch``, ``yaw``, ``roll`` (B, 66) logits over bins of 3 degrees; ``t`` (B, 3); ``exp`` (B, 3K);
        ``scale`` (B, 1); ``kp`` (B, 3K). Raises as ``extract_feature_3d``.
        """
        image = self._image(image)
        with self._network("motion_extractor", image):
            return self._motion(image)

    @torch.no_grad()
    def heads(self, frames: Tensor) -> Tensor:
        """M on pictures as they come from a camera: frames (B, H, W, 3) uint8, RGB -> its heads side by side.

        Frames of another size than the model's are squeezed into its square. (B, 6K + 202) float32, in the order
        pitch, yaw, roll, t, exp, scale, kp of ``extract_motion``: what ``ops.keypoint_transform`` reads.

        Raises:
            TypeError: not a uint8 tensor.
            ValueError: wrong shape, another device.
        """
        _checks.dtype("frames", _checks.is_tensor("frames", frames), (torch.uint8,))
        _checks.shape("frames", frames, ("B", "H", "W", 3))
        self._same_device("frames", frames)
        with self._network("motion_extractor", frames):
            return self._heads(frames)

    @torch.no_grad()
    def warp(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> dict[str, Tensor | None]:
        """W: feature volume (B, C, D, h, w) and keypoints (B, K, 3) in normalised coordinates -> dict.

        ``out`` (B, 4 * block_expansion, h, w); ``occlusion_map`` (B, 1, h, w) in 0..1, None if the model estimates
        none; ``deformation`` (B, D, h, w, 3), normalised (x, y, z) sampling positions.

        Raises:
            TypeError: not float tensors.
            ValueError: shapes that do not fit the model or each other, another device.
        """
        feature_3d, kp_source, kp_driving = self._warp_inputs(feature_3d, kp_source, kp_driving)
        with self._network("warping_module", feature_3d):
            return self._warp(feature_3d, kp_source, kp_driving)

    @torch.no_grad()
    def decode(self, feature: Tensor) -> Tensor:
        """G: warped feature (B, C, h, w) -> image (B, 3, S, S), RGB in 0..1; S is 8h for the published model.

        Raises as ``warp``.
        """
        channels = self.config.spade_generator.feature_channels
        feature = self._checked("feature", feature, ("B", channels, "h", "w"))
        with self._network("spade_generator", feature):
            return self._decode(feature)

    @torch.no_grad()
    def warp_decode(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """G(W(feature_3d, kp_source, kp_driving)): the image (B, 3, S, S), RGB in 0..1. Raises as ``warp``."""
        feature_3d, kp_source, kp_driving = self._warp_inputs(feature_3d, kp_source, kp_driving)
        return self._render(self._prepare(feature_3d, kp_source), kp_driving, as_uint8=False)

    @torch.no_grad()
    def prepare_warp(self, feature_3d: Tensor, kp_source: Tensor) -> Source:
        """What ``render`` needs of a source, computed once: feature volume (B, C, D, h, w), keypoints (B, K, 3).

        The tensors of the answer are the caller's to keep; ``copy_`` overwrites them, for a graph that reads them.
        Raises as ``warp``.
        """
        feature_3d, kp_source = self._source_inputs(feature_3d, kp_source)
        return self._prepare(feature_3d.clone(), kp_source.clone())

    @torch.no_grad()
    def render(self, source: Source, kp_driving: Tensor) -> Tensor:
        """W and G to pictures: kp_driving (B, K, 3), normalised coordinates -> (B, S, S, 3) uint8, RGB.

        Args:
            source: of this model's ``prepare_warp``, batch 1 or B.

        Raises:
            TypeError: ``kp_driving`` is no float tensor.
            ValueError: its shape does not fit the model or the source; another device.
        """
        kp_driving = self._checked("kp_driving", kp_driving, ("B", self.config.num_kp, 3))
        batch = kp_driving.shape[0]
        if source.batch not in (1, batch):
            raise ValueError(f"source must have batch 1 or {batch}, that of kp_driving; got {source.batch}")
        return self._render(source, kp_driving, as_uint8=True)

    @torch.no_grad()
    def stitch(self, features: Tensor) -> Tensor:
        """Source and driving keypoints, flattened and joined, (B, 6K) -> keypoint offsets and (x, y), (B, 3K + 2)."""
        return self._checked_mlp("stitching", features)

    @torch.no_grad()
    def retarget_eye(self, features: Tensor) -> Tensor:
        """Source keypoints, its two eye-open ratios and the wanted one, (B, 3K + 3) -> offsets (B, 3K)."""
        return self._checked_mlp("eye", features)

    @torch.no_grad()
    def retarget_lip(self, features: Tensor) -> Tensor:
        """Source keypoints, its lip-open ratio and the wanted one, (B, 3K + 2) -> offsets (B, 3K)."""
        return self._checked_mlp("lip", features)

    # The networks themselves, on checked arguments.

    @abstractmethod
    def _feature_3d(self, image: Tensor) -> Tensor: ...

    @abstractmethod
    def _motion(self, image: Tensor) -> dict[str, Tensor]: ...

    @abstractmethod
    def _heads(self, frames: Tensor) -> Tensor: ...

    @abstractmethod
    def _warp(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> dict[str, Tensor | None]: ...

    @abstractmethod
    def _decode(self, feature: Tensor) -> Tensor: ...

    @abstractmethod
    def _prepare(self, feature_3d: Tensor, kp_source: Tensor) -> Source: ...

    @abstractmethod
    def _render(self, source: Source, kp_driving: Tensor, as_uint8: bool) -> Tensor: ...

    @abstractmethod
    def _mlp(self, name: str, features: Tensor) -> Tensor: ...

    @contextlib.contextmanager
    def _network(self, name: str, batched: Tensor) -> Iterator[None]:
        """The trace range of one network call; an outer autocast does not reach into it."""
        with (
            trace.range(name, "network", batch=batched.shape[0]),
            torch.autocast(self.device.type, enabled=False),
        ):
            yield

    def _checked_mlp(self, name: str, features: Tensor) -> Tensor:
        size = getattr(self.config.stitching_retargeting_module, name).input_size
        features = self._checked("features", features, ("B", size))
        with self._network("stitching_retargeting_module", features):
            return self._mlp(name, features)

    def _checked(self, name: str, value: Tensor, shape: tuple[int | str, ...]) -> Tensor:
        tensor = _checks.is_tensor(name, value)
        _checks.dtype(name, tensor)
        _checks.shape(name, tensor, shape)
        self._same_device(name, tensor)
        return tensor.float()

    def _same_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.device:
            raise ValueError(f"{name} must be on the model's device, {self.device}; got {tensor.device}")

    def _image(self, image: Tensor) -> Tensor:
        channels = self.config.appearance_feature_extractor.image_channel
        image = self._checked("image", image, ("B", channels, "H", "W"))
        smallest = max(MIN_IMAGE_SIZE, self.config.feature_stride)
        if min(image.shape[2:]) < smallest:
            raise ValueError(f"image must be at least {smallest} pixels high and wide, got {tuple(image.shape[2:])}")
        return image

    def _source_inputs(self, feature_3d: Tensor, kp_source: Tensor) -> tuple[Tensor, Tensor]:
        appearance, multiple = self.config.appearance_feature_extractor, self.config.feature_multiple
        volume_shape = ("B", appearance.reshape_channel, appearance.reshape_depth, "h", "w")
        feature_3d = self._checked("feature_3d", feature_3d, volume_shape)
        height, width = feature_3d.shape[3:]
        if height % multiple or width % multiple:
            raise ValueError(f"feature_3d's h and w must be multiples of {multiple}, got {(height, width)}")
        return feature_3d, self._checked("kp_source", kp_source, (feature_3d.shape[0], self.config.num_kp, 3))

    def _warp_inputs(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature_3d, kp_source = self._source_inputs(feature_3d, kp_source)
        return feature_3d, kp_source, self._checked("kp_driving", kp_driving, tuple(kp_source.shape))
