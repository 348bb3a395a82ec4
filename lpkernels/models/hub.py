"""Downloading of checkpoints from Hugging Face, where ``huggingface_hub`` is installed."""

from __future__ import annotations

import re
from pathlib import Path

from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models.config import NETWORKS
from lpkernels.models.layout import CONFIG_NAME, SUFFIXES

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Not fetched for a variant: the other's base models. The humans' stitching serves both.
_NOT_FOR = {"humans": "liveportrait_animals/*", "animals": "liveportrait/base_models/*"}


def is_repo_id(text: str) -> bool:
    """Whether ``text`` looks like ``owner/name``."""
    return _REPO_ID.fullmatch(text) is not None


def download(repo_id: str, variant: str) -> Path:
    """The folder of a downloaded (or cached) snapshot with the weight files of ``variant``.

    Raises:
        InputError: ``huggingface_hub`` is not installed.
        LpkernelsError: the download failed; the message holds the reason.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise InputError(
            f"weights {repo_id!r} is no existing folder; to download a Hugging Face repository of that name, "
            "install huggingface_hub: pip install 'lpkernels[hub]'"
        ) from error
    patterns = [f"*{name}{suffix}" for name in NETWORKS for suffix in SUFFIXES]
    try:
        folder = snapshot_download(
            repo_id=repo_id, allow_patterns=[*patterns, CONFIG_NAME], ignore_patterns=[_NOT_FOR[variant]]
        )
    except Exception as error:  # the hub raises its own, requests' and the system's exceptions
        reason = " ".join(str(error).split())
        raise LpkernelsError(
            f"could not download weights from {repo_id!r}: {reason or type(error).__name__}"
        ) from error
    return Path(folder)
