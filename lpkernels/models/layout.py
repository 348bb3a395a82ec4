"""Where the weight files of a checkpoint lie.

A checkpoint is five files, ``<network>.safetensors`` or ``<network>.pth`` (safetensors first when both are there), and
an optional ``config.json``. Given a folder, these places are tried in order, for each of the two variants:

================== =================================================== ===========================================
folder given       humans                                              animals
================== =================================================== ===========================================
the original's     ``liveportrait/base_models``                        ``liveportrait_animals/base_models_v1.1``,
``pretrained_...``                                                     ``liveportrait_animals/base_models``
one above it       ``pretrained_weights/liveportrait/base_models``     the same below ``pretrained_weights``
the variant's own  ``base_models``                                     ``base_models_v1.1``, ``base_models``
flat               the folder itself                                   the folder itself
================== =================================================== ===========================================

``stitching_retargeting_module`` lies beside the others in a flat folder, else in ``retargeting_models`` next to
``base_models``. The animals variant uses the humans' stitching, ``liveportrait/retargeting_models``, as the original
program does; a file of its own, ``liveportrait_animals/retargeting_models``, is read only where the humans' is absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lpkernels.errors import InputError
from lpkernels.models.config import NETWORKS

STITCHING = "stitching_retargeting_module"
BASE_NETWORKS = tuple(name for name in NETWORKS if name != STITCHING)
SUFFIXES = (".safetensors", ".pth")
CONFIG_NAME = "config.json"
VARIANT_FOLDERS = {"humans": "liveportrait", "animals": "liveportrait_animals"}
_BASE_FOLDERS = {"humans": ("base_models",), "animals": ("base_models_v1.1", "base_models")}


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint; ``config`` is None when there is no config.json."""

    networks: dict[str, Path]
    config: Path | None


def check_variant(variant: str) -> None:
    """Raise InputError unless ``variant`` is ``humans`` or ``animals``."""
    if variant not in VARIANT_FOLDERS:
        raise InputError(f"variant must be one of {', '.join(VARIANT_FOLDERS)}; got {variant!r}")


def find_files(folder: Path, variant: str = "humans") -> CheckpointFiles:
    """The weight files below ``folder``.

    Raises:
        InputError: an unknown variant, not a folder, no weights in it, or one of the five files missing.
    """
    check_variant(variant)
    if not folder.exists():
        raise InputError(f"weights folder {folder} does not exist")
    if not folder.is_dir():
        raise InputError(f"weights path {folder} is a file; expected the folder that holds the weight files")
    for base in _base_folders(folder, variant):
        networks = {name: _weight_file([base], name) for name in BASE_NETWORKS}
        if any(networks.values()):
            networks[STITCHING] = _weight_file(_stitching_folders(base, variant), STITCHING)
            return CheckpointFiles(_all_there(networks, base, variant), _config_file(folder, base))
    places = ", ".join(str(base.relative_to(folder)) for base in _base_folders(folder, variant))
    raise InputError(
        f"no {variant} weights in {folder}: looked for {', '.join(BASE_NETWORKS)} (.safetensors or .pth) in {places}"
    )


def _base_folders(folder: Path, variant: str) -> Iterator[Path]:
    own, bases = VARIANT_FOLDERS[variant], _BASE_FOLDERS[variant]
    for root in (folder, folder / "pretrained_weights"):
        for base in bases:
            yield root / own / base
    # Given the other variant's folder, its base_models must not be taken for this one's.
    if folder.name == own or folder.name not in VARIANT_FOLDERS.values():
        for base in bases:
            yield folder / base
    yield folder


def _stitching_folders(base: Path, variant: str) -> list[Path]:
    # resolve(): a relative path such as "." has no name and no parent to look in
    absolute = base.resolve()
    if not absolute.name.startswith("base_models"):
        return [base]
    own = absolute.parent / "retargeting_models"
    if variant == "humans":
        return [own, base]
    return [absolute.parent.parent / VARIANT_FOLDERS["humans"] / "retargeting_models", own, base]


def _weight_file(folders: list[Path], name: str) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for folder in folders for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _all_there(networks: dict[str, Path | None], base: Path, variant: str) -> dict[str, Path]:
    for name, path in networks.items():
        if path is None:
            folders = _stitching_folders(base, variant) if name == STITCHING else [base]
            places = ", ".join(str(folder) for folder in folders)
            raise InputError(f"weights file {name}.safetensors or {name}.pth is missing; looked in {places}")
    return {name: path for name, path in networks.items() if path is not None}


def _config_file(folder: Path, base: Path) -> Path | None:
    return next((path for path in (base / CONFIG_NAME, folder / CONFIG_NAME) if path.is_file()), None)
