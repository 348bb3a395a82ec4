"""Reading and writing of weight files, with every key and shape checked against the network that wants them."""

from __future__ import annotations

import json
import re
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models import hub
from lpkernels.models.config import NETWORKS, LivePortraitConfig
from lpkernels.models.layout import CONFIG_NAME, STITCHING, SUFFIXES, CheckpointFiles, check_variant, find_files

# The original's names for the three MLPs in their common file.
_PARTS = {"stitching": "retarget_shoulder", "lip": "retarget_mouth", "eye": "retarget_eye"}
# A part's keys may follow it as a nested dict's or after "." or "_", and carry DataParallel's "module.".
_PART_KEY = re.compile(rf"({'|'.join(_PARTS.values())})[._](?:module\.)?(.+)")


def locate(path: str | Path, variant: str = "humans") -> CheckpointFiles:
    """The files of the checkpoint at ``path``: a folder (see ``layout``) or a Hugging Face ``owner/name``.

    Raises:
        InputError: nothing usable there, or ``huggingface_hub`` is needed and not installed.
        LpkernelsError: the download failed.
    """
    check_variant(variant)
    try:
        folder = Path(path).expanduser()
        if isinstance(path, str) and not folder.exists() and hub.is_repo_id(path):
            folder = hub.download(path, variant)
        return find_files(folder, variant)
    except OSError as error:  # no permission, a name too long
        raise InputError(f"cannot look into the weights folder {path}: {_one_line(error)}") from error


def read_config(files: CheckpointFiles) -> LivePortraitConfig:
    """The config.json beside the weights; the published model's sizes when there is none.

    Raises:
        InputError: not JSON, an unknown key or a bad value; the message names the file.
    """
    if files.config is None:
        return LivePortraitConfig.full()
    try:
        return LivePortraitConfig.from_dict(json.loads(files.config.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:  # InputError and JSON's and Unicode's are ValueErrors
        raise InputError(f"{files.config}: {_one_line(error)}") from error


def read_network(files: CheckpointFiles, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the network ``name``: keys, order, shapes and dtypes of ``like``, on the CPU.

    Floating-point tensors of any precision are converted to the dtype of ``like``.

    Raises:
        InputError: a damaged file, a pickle that wants to run code, a missing or unexpected key, a wrong shape or kind
            of tensor; the message names the file, the key, what was expected and what came.
    """
    path = files.networks[name]
    state = dict(_plain_keys(path, _read_file(path), name))
    wanted = {_file_key(name, key): key for key in like}
    hint = "" if files.config else f"; without a {CONFIG_NAME} the published model's sizes are expected"
    missing = [key for key in wanted if key not in state]
    if missing:
        expected = f"expected a tensor of shape {tuple(like[wanted[missing[0]]].shape)}"
        raise InputError(f"{path}: key {missing[0]!r} is missing ({len(missing)} in all); {expected}, came none{hint}")
    for key, tensor in state.items():
        if key not in wanted:
            raise InputError(
                f"{path}: key {key!r} is unexpected; expected the keys of {name}, came {_kind(tensor)}{hint}"
            )
    return {
        key: _tensor_like(path, file_key, state[file_key], like[key], hint).to(like[key].dtype)
        for file_key, key in wanted.items()
    }


def save(folder: Path, config: LivePortraitConfig, states: Mapping[str, Mapping[str, Tensor]], suffix: str) -> None:
    """Write ``states`` (network name -> state dict) and ``config`` into ``folder``, all files or none.

    Raises:
        InputError: ``suffix`` is neither ``safetensors`` nor ``pth``; ``pth`` where safetensors would be read instead.
        LpkernelsError: the folder cannot be written.
    """
    if f".{suffix}" not in SUFFIXES:
        raise InputError(f"format must be 'safetensors' or 'pth', got {suffix!r}")
    if suffix == "pth":
        for name in NETWORKS:
            if (folder / f"{name}.safetensors").exists():
                raise InputError(
                    f"{folder} holds {name}.safetensors, which would be read in place of {name}.pth; use another folder"
                )
    writers: dict[str, Callable[[Path], object]] = {}
    for name in NETWORKS:
        writers[f"{name}.{suffix}"] = _writer({k: v.cpu().contiguous() for k, v in states[name].items()}, name, suffix)
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    writers[CONFIG_NAME] = lambda path: path.write_text(text, encoding="utf-8")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_all(folder, writers)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch.save: RuntimeError
        raise LpkernelsError(f"cannot write the weights into {folder}: {_one_line(error)}") from error


def _write_all(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    temporary = {name: folder / f".{name}.{uuid.uuid4().hex}.tmp" for name in writers}
    try:
        for name, write in writers.items():
            write(temporary[name])
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _writer(state: dict[str, Tensor], name: str, suffix: str) -> Callable[[Path], object]:
    if suffix == "safetensors":
        flat = {_file_key(name, key): tensor for key, tensor in state.items()}
        return lambda path: safetensors.torch.save_file(flat, path, metadata={"format": "pt"})
    content: dict[str, Any] = state
    if name == STITCHING:
        content = {part: {} for part in _PARTS.values()}
        for key, tensor in state.items():
            mlp, _, rest = key.partition(".")
            content[_PARTS[mlp]][rest] = tensor
    return lambda path: torch.save(content, path)


def _read_file(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol: the error below says what matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path}: expected a {path.suffix} file of tensors, came {_why_unreadable(error)}") from error


def _why_unreadable(error: Exception) -> str:
    """PyTorch's paragraph of advice, which includes running the pickle after all, as one plain clause."""
    text = _one_line(error)
    if refused := re.search(r"GLOBAL (\S+)", text):
        return f"a pickle that wants {refused.group(1)}; it was refused and nothing was run"
    if "Weights only load failed" in text:
        return "a pickle of something else; nothing was run"
    return f"a truncated or damaged one ({type(error).__name__}: {text.split('. ')[0][:200]})"


def _plain_keys(path: Path, content: object, name: str) -> Iterator[tuple[str, object]]:
    """(key, value) pairs under the keys of ``_file_key``, without nesting and DataParallel's prefix."""
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a dict of tensors, came {_kind(content)}")
    for key, value in content.items():
        if name == STITCHING and isinstance(value, Mapping):
            for inner, tensor in value.items():
                yield f"{key}.{str(inner).removeprefix('module.')}", tensor
        elif name == STITCHING and (match := _PART_KEY.fullmatch(str(key))):
            yield f"{match.group(1)}.{match.group(2)}", value
        else:
            yield str(key).removeprefix("module."), value


def _file_key(name: str, key: str) -> str:
    """A state dict's key as safetensors files spell it: the three MLPs under the original's names."""
    if name != STITCHING:
        return key
    mlp, _, rest = key.partition(".")
    return f"{_PARTS[mlp]}.{rest}"


def _tensor_like(path: Path, key: str, value: object, like: Tensor, hint: str) -> Tensor:
    """``value``, if it is a plain tensor with the shape and the kind of number of ``like``."""
    kind = "floating-point" if like.is_floating_point() else "integer"
    expected = f"expected a {kind} tensor of shape {tuple(like.shape)}"
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_quantized:
        raise InputError(f"{path}: key {key!r}: {expected}, came {_kind(value)}")
    if value.is_floating_point() != like.is_floating_point():
        raise InputError(f"{path}: key {key!r}: {expected}, came dtype {str(value.dtype).removeprefix('torch.')}")
    if value.shape != like.shape:
        raise InputError(f"{path}: key {key!r} has the wrong shape: {expected}, came {tuple(value.shape)}{hint}")
    return value


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a value of type {type(value).__name__}"
    layout = "" if value.layout == torch.strided else f" {value.layout}"
    return f"a{layout} {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
