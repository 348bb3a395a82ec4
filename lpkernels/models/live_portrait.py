"""The five networks together, as published: what the rest of the program calls."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lpkernels.errors import InputError
from lpkernels.models import checkpoint, random_weights
from lpkernels.models.appearance_feature_extractor import AppearanceFeatureExtractor
from lpkernels.models.config import NETWORKS, LivePortraitConfig
from lpkernels.models.motion_extractor import MotionExtractor
from lpkernels.models.pixels import resize_uint8, to_uint8
from lpkernels.models.portrait_model import PortraitModel
from lpkernels.models.spade_generator import SPADEDecoder
from lpkernels.models.stitching_retargeting_network import make_stitching_retargeting_module
from lpkernels.models.warp_source import WarpSource
from lpkernels.models.warping_network import WarpingNetwork

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class LivePortrait(PortraitModel[WarpSource]):
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

    def _feature_3d(self, image: Tensor) -> Tensor:
        with self._lowered():
            return self.appearance_feature_extractor(image).float()

    def _motion(self, image: Tensor) -> dict[str, Tensor]:
        with self._lowered():
            return {name: head.float() for name, head in self.motion_extractor(image).items()}

    def _heads(self, frames: Tensor) -> Tensor:
        return torch.cat(list(self._motion(resize_uint8(frames, self.config.image_size)).values()), dim=1)

    def _warp(self, feature_3d: Tensor, kp_source: Tensor, kp_driving: Tensor) -> dict[str, Tensor | None]:
        with self._lowered():
            result = self.warping_module(feature_3d, kp_driving=kp_driving, kp_source=kp_source)
        return {name: None if value is None else value.float() for name, value in result.items()}

    def _decode(self, feature: Tensor) -> Tensor:
        with self._lowered():
            return self.spade_generator(feature).float()

    def _prepare(self, feature_3d: Tensor, kp_source: Tensor) -> WarpSource:
        return WarpSource(feature_3d, kp_source)

    def _render(self, source: WarpSource, kp_driving: Tensor, as_uint8: bool) -> Tensor:
        source = source.expand(kp_driving.shape[0])
        with self._network("warping_module", kp_driving), self._lowered():
            feature = self.warping_module(source.feature_3d, kp_driving=kp_driving, kp_source=source.kp_source)["out"]
        with self._network("spade_generator", kp_driving):
            image = self._decode(feature)
        return to_uint8(image) if as_uint8 else image

    def _mlp(self, name: str, features: Tensor) -> Tensor:
        return self.stitching_retargeting_module[name](features)

    def _lowered(self) -> torch.autocast:
        """The networks' autocast; the stitching and retargeting MLPs stay out of it."""
        lowered = self._dtype if self._dtype != torch.float32 else None
        return torch.autocast(self.device.type, dtype=lowered, enabled=lowered is not None)


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
