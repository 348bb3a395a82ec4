"""The five networks together: what the rest of the program calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from lpkernels import _checks, trace
from lpkernels.errors import InputError
from lpkernels.models import checkpoint, random_weights
from lpkernels.models.appearance_feature_extractor import AppearanceFeatureExtractor
from lpkernels.models.config import NETWORKS, LivePortraitConfig
from lpkernels.models.motion_extractor import MotionExtractor
from lpkernels.models.spade_generator import SPADEDecoder
from lpkernels.models.stitching_retargeting_network import make_stitching_retargeting_module
from lpkernels.models.warping_network import WarpingNetwork

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The motion extractor's stem and its three down-samplings need at least one cell each.
MIN_IMAGE_SIZE = 32


class LivePortrait(nn.Module):
    """LivePortrait's networks (arXiv 2407.03168), for inference.

    Parameters stay float32. With ``dtype`` float16 or bfloat16 the networks run under ``torch.autocast``, as the
    original ships; the stitching and retargeting MLPs always run in float32. Every method takes and returns float32
    tensors on ``device`` and needs no gradient.

    Args:
        config: the networks' sizes; the published model when None.
        dtype: compute dtype, one of float32, float16, bfloat16.

    Raises:
        InputError: another ``dtype``.
    """

    def __init__(self, config: LivePortraitConfig | None = None, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if dtype not in COMPUTE_DTYPES:
            raise InputError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {dtype}")
        self.config = config if config is not None else LivePortraitConfig.full()
        self._dtype = dtype
        self.appearance_feature_extractor = AppearanceFeatureExtractor(self.config.appearance_feature_extractor)
        self.motion_extractor = MotionExtractor(self.config.motion_extractor)
        self.warping_module = WarpingNetwork(self.config.warping_module)
        self.spade_generator = SPADEDecoder(self.config.spade_generator)
        self.stitching_retargeting_module = make_stitching_retargeting_module(self.config.stitching_retargeting_module)
        self.eval()
        self.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        variant: str = "humans",
    ) -> LivePortrait:
        """Load a checkpoint folder or Hugging Face repository; ``lpkernels.models.layout`` lists the layouts.

        Args:
            path: a folder, or ``owner/name`` of a Hugging Face repository (needs ``huggingface_hub``).
            variant: ``humans`` or ``animals``.

        Raises:
            InputError: a missing folder or file, a missing or unexpected key, a wrong shape, a damaged file, a pickle
                that wants to run code; the message names the file and the key.
            LpkernelsError: the download failed.
        """
        target = _usable_device(device)
        files = checkpoint.locate(path, variant)
        with torch.device("meta"):
            model = cls(checkpoint.read_config(files), dtype=dtype)
        for name in NETWORKS:
            network = model.get_submodule(name)
            network.load_state_dict(checkpoint.read_network(files, name, network.state_dict()), assign=True)
        return model.to(target)

    @classmethod
    def random(
        cls,
        seed: int = 0,
        config: LivePortraitConfig | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LivePortrait:
        """A model with weights drawn from ``seed``: pictures are noise, keypoints move in a trained model's range."""
        target = _usable_device(device)
        with torch.device("meta"):
            model = cls(config, dtype=dtype)
        for name in NETWORKS:
            network = model.get_submodule(name)
            network.load_state_dict(random_weights.make_state_dict(network, f"{seed}/{name}"), assign=True)
        return model.to(target)

    def save_pretrained(self, path: str | Path, format: str = "safetensors") -> None:  # noqa: A002
        """Write the five networks and ``config.json`` into the folder ``path``, made if it is not there.

        ``safetensors`` or ``pth``: the latter are the original's files, ready for its ``base_models`` and
        ``retargeting_models`` folders. Each file is written under a temporary name and renamed when all are complete.

        Raises:
            InputError: an unknown ``format``, or ``pth`` into a folder whose safetensors would be read instead.
            LpkernelsError: the folder cannot be written.
        """
        states = {name: self.get_submodule(name).state_dict() for name in NETWORKS}
        checkpoint.save(Path(path), self.config, states, format)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.motion_extractor.detector.fc_t.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype; parameters are float32 whatever it is."""
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
            return self.appearance_feature_extractor(image).float()

    @torch.no_grad()
    def extract_motion(self, image: Tensor) -> dict[str, Tensor]:
        """M: image (B, 3, H, W), RGB in 0..1 -> raw heads.

        ``pitch``, ``yaw``, ``roll`` (B, 66) logits over bins of 3 degrees; ``t`` (B, 3); ``exp`` (B, 3K);
        ``scale`` (B, 1); ``kp`` (B, 3K). Raises as ``extract_feature_3d``.
        """
        image = self._image(image)
        with self._network("motion_extractor", image):
            return {name: head.float() for name, head in self.motion_extractor(image).items()}

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
            result = self.warping_module(feature_3d, kp_driving=kp_driving, kp_source=kp_source)
        return {name: None if value is None else value.float() for name, value in result.items()}

    @torch.no_grad()
    def decode(self, feature: Tensor) -> Tensor:
        """G: warped feature (B, C, h, w) -> image (B, 3, S, S), RGB in 0..1; S is 8h for the published model.

        Raises as ``warp``.
        """
        channels = self.config.spade_generator.feature_channels
        feature = self._checked("feature", feature, ("B", channels, "h", "w"))
        with self._network("spade_generator", feature):
            return self.spade_generator(feature).float()

    @torch.no_grad()
    def warp_decode(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> Tensor:
        """G(W(feature_3d, kp_source, kp_driving)): the image (B, 3, S, S), RGB in 0..1. Raises as ``warp``."""
        feature_3d, kp_source, kp_driving = self._warp_inputs(feature_3d, kp_source, kp_driving)
        with self._network("warping_module", feature_3d):
            feature = self.warping_module(feature_3d, kp_driving=kp_driving, kp_source=kp_source)["out"]
        with self._network("spade_generator", feature):
            return self.spade_generator(feature).float()

    @torch.no_grad()
    def stitch(self, features: Tensor) -> Tensor:
        """Source and driving keypoints, flattened and joined, (B, 6K) -> keypoint offsets and (x, y), (B, 3K + 2)."""
        return self._mlp("stitching", features)

    @torch.no_grad()
    def retarget_eye(self, features: Tensor) -> Tensor:
        """Source keypoints, its two eye-open ratios and the wanted one, (B, 3K + 3) -> offsets (B, 3K)."""
        return self._mlp("eye", features)

    @torch.no_grad()
    def retarget_lip(self, features: Tensor) -> Tensor:
        """Source keypoints, its lip-open ratio and the wanted one, (B, 3K + 2) -> offsets (B, 3K)."""
        return self._mlp("lip", features)

    def _mlp(self, name: str, features: Tensor) -> Tensor:
        size = getattr(self.config.stitching_retargeting_module, name).input_size
        features = self._checked("features", features, ("B", size))
        with self._network("stitching_retargeting_module", features, torch.float32):
            return self.stitching_retargeting_module[name](features)

    @contextlib.contextmanager
    def _network(self, name: str, batched: Tensor, dtype: torch.dtype | None = None) -> Iterator[None]:
        """The trace range of one network call, and its autocast; float32 switches an outer autocast off."""
        dtype = dtype or self._dtype
        lowered = dtype if dtype != torch.float32 else None
        with (
            trace.range(name, "network", batch=batched.shape[0]),
            torch.autocast(self.device.type, dtype=lowered, enabled=lowered is not None),
        ):
            yield

    def _checked(self, name: str, value: Tensor, shape: tuple[int | str, ...]) -> Tensor:
        tensor = _checks.is_tensor(name, value)
        _checks.dtype(name, tensor)
        _checks.shape(name, tensor, shape)
        if tensor.device != self.device:
            raise ValueError(f"{name} must be on the model's device, {self.device}; got {tensor.device}")
        return tensor.float()

    def _image(self, image: Tensor) -> Tensor:
        channels = self.config.appearance_feature_extractor.image_channel
        image = self._checked("image", image, ("B", channels, "H", "W"))
        smallest = max(MIN_IMAGE_SIZE, self.config.feature_stride)
        if min(image.shape[2:]) < smallest:
            raise ValueError(f"image must be at least {smallest} pixels high and wide, got {tuple(image.shape[2:])}")
        return image

    def _warp_inputs(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        appearance, multiple = self.config.appearance_feature_extractor, self.config.feature_multiple
        volume_shape = ("B", appearance.reshape_channel, appearance.reshape_depth, "h", "w")
        feature_3d = self._checked("feature_3d", feature_3d, volume_shape)
        batch, (height, width) = feature_3d.shape[0], feature_3d.shape[3:]
        if height % multiple or width % multiple:
            raise ValueError(f"feature_3d's h and w must be multiples of {multiple}, got {(height, width)}")
        kp_shape = (batch, self.config.num_kp, 3)
        kp_source = self._checked("kp_source", kp_source, kp_shape)
        return feature_3d, kp_source, self._checked("kp_driving", kp_driving, kp_shape)


def _usable_device(device: str | torch.device) -> torch.device:
    """``device`` as a torch.device; InputError when this PyTorch has no such device."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device must be one that PyTorch knows, such as cpu or cuda:0; got {device!r}") from error
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(f"device {device!s}: this PyTorch ({torch.__version__}) sees no CUDA GPU; use cpu")
        if target.index is not None and target.index >= count:
            raise InputError(f"device {device!s}: this machine has {count} GPU(s), cuda:0 to cuda:{count - 1}")
    return target
