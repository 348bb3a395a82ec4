"""Weight files: both formats there and back, and one clear error for everything that can be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models import LivePortrait, LivePortraitConfig, checkpoint

Linked = Callable[[str], Path]
FORMATS = ["safetensors", "pth"]


def load(folder: Path) -> LivePortrait:
    return LivePortrait.from_pretrained(folder)


def read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)


def replace(path: Path, content: Any) -> None:
    """Put ``content`` (bytes or a dict) in the place of the link ``path``."""
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)


def assert_equal_models(first: LivePortrait, second: LivePortrait) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert list(a) == list(b)
    for key, tensor in a.items():
        assert tensor.dtype == b[key].dtype
        assert torch.equal(tensor, b[key]), key


def failure(folder: Path, *parts: str) -> str:
    """The one-line InputError of loading ``folder``, which must contain every one of ``parts``."""
    with pytest.raises(InputError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip(tiny: LivePortrait, saved: dict[str, Path], suffix: str) -> None:
    model = load(saved[suffix])
    assert model.config == tiny.config
    assert_equal_models(model, tiny)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    names = {f"{name}.{suffix}" for name in checkpoint.NETWORKS} | {"config.json"}
    assert {path.name for path in saved[suffix].iterdir()} == names


def test_pth_holds_what_the_original_reads(saved: dict[str, Path]) -> None:
    parts = torch.load(saved["pth"] / "stitching_retargeting_module.pth", weights_only=True)
    assert list(parts) == ["retarget_shoulder", "retarget_mouth", "retarget_eye"]
    assert next(iter(parts["retarget_shoulder"])) == "mlp.0.weight"
    keys = read(saved["pth"] / "warping_module.pth")
    assert next(iter(keys)) == "dense_motion_network.hourglass.encoder.down_blocks.0.conv.weight"


def test_safetensors_names_the_three_mlps(saved: dict[str, Path]) -> None:
    keys = set(read(saved["safetensors"] / "stitching_retargeting_module.safetensors"))
    assert {"retarget_shoulder.mlp.0.weight", "retarget_mouth.mlp.6.bias", "retarget_eye.mlp.10.bias"} <= keys


def test_data_parallel_prefix_is_stripped(tiny: LivePortrait, linked: Linked) -> None:
    folder = linked("pth")
    path = folder / "stitching_retargeting_module.pth"
    parts = read(path)
    replace(path, {part: {f"module.{key}": value for key, value in state.items()} for part, state in parts.items()})
    path = folder / "appearance_feature_extractor.pth"
    replace(path, {f"module.{key}": value for key, value in read(path).items()})
    assert_equal_models(load(folder), tiny)


def test_underscored_part_names_are_read(tiny: LivePortrait, linked: Linked) -> None:
    folder = linked("safetensors")
    path = folder / "stitching_retargeting_module.safetensors"
    replace(path, {key.replace(".", "_module.", 1): value for key, value in read(path).items()})
    assert_equal_models(load(folder), tiny)


def test_half_precision_files_become_float32(tiny: LivePortrait, linked: Linked) -> None:
    folder = linked("safetensors")
    path = folder / "motion_extractor.safetensors"
    replace(path, {key: value.half() for key, value in read(path).items()})
    weight = load(folder).motion_extractor.detector.fc_kp.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, tiny.motion_extractor.detector.fc_kp.weight.half().float())


def test_safetensors_are_preferred(tiny: LivePortrait, linked: Linked, saved: dict[str, Path]) -> None:
    folder = linked("safetensors")
    (folder / "warping_module.pth").write_bytes(b"not read")
    assert_equal_models(load(folder), tiny)


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_file(linked: Linked, suffix: str) -> None:
    folder = linked(suffix)
    (folder / f"spade_generator.{suffix}").unlink()
    failure(folder, "spade_generator.safetensors or spade_generator.pth is missing", str(folder))


@pytest.mark.parametrize("suffix", FORMATS)
def test_missing_key(linked: Linked, suffix: str) -> None:
    folder = linked(suffix)
    path = folder / f"warping_module.{suffix}"
    content = read(path)
    del content["third.conv.weight"]
    replace(path, content)
    failure(folder, str(path), "'third.conv.weight' is missing (1 in all)", "shape (64, 64, 3, 3), came none")


@pytest.mark.parametrize("suffix", FORMATS)
def test_unexpected_key(linked: Linked, suffix: str) -> None:
    folder = linked(suffix)
    path = folder / f"warping_module.{suffix}"
    replace(path, {**read(path), "fifth.weight": torch.zeros(2, 3)})
    failure(folder, str(path), "'fifth.weight' is unexpected", "came a float32 tensor of shape (2, 3)")


@pytest.mark.parametrize("suffix", FORMATS)
def test_wrong_shape(linked: Linked, suffix: str) -> None:
    folder = linked(suffix)
    path = folder / f"warping_module.{suffix}"
    replace(path, {**read(path), "fourth.bias": torch.zeros(63)})
    failure(folder, str(path), "'fourth.bias' has the wrong shape", "of shape (64,), came (63,)")


def test_missing_key_in_a_part(linked: Linked) -> None:
    folder = linked("pth")
    path = folder / "stitching_retargeting_module.pth"
    parts = read(path)
    del parts["retarget_eye"]
    replace(path, parts)
    failure(folder, str(path), "'retarget_eye.mlp.0.weight' is missing (12 in all)")


@pytest.mark.parametrize(
    ("value", "came"),
    [
        (3, "came a value of type int"),
        (torch.zeros(64, dtype=torch.complex64), "came a complex64 tensor"),
        (torch.zeros(64, dtype=torch.int32), "came dtype int32"),
        (torch.zeros(64).to_sparse(), "came a torch.sparse_coo float32 tensor"),
    ],
)
def test_wrong_kind_of_value(linked: Linked, value: object, came: str) -> None:
    folder = linked("pth")
    path = folder / "warping_module.pth"
    replace(path, {**read(path), "fourth.bias": value})
    failure(folder, "'fourth.bias'", "expected a floating-point tensor of shape (64,)", came)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("keep", [0, 7, 0.5, -100])
def test_truncated_file(linked: Linked, suffix: str, keep: float) -> None:
    folder = linked(suffix)
    path = folder / f"appearance_feature_extractor.{suffix}"
    content = path.read_bytes()
    replace(path, content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    failure(folder, str(path), f"expected a .{suffix} file of tensors", "truncated or damaged")


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_content(linked: Linked, suffix: str) -> None:
    folder = linked(suffix)
    path = folder / f"appearance_feature_extractor.{suffix}"
    replace(path, b"<html>404</html>" * 100)
    failure(folder, str(path), f"expected a .{suffix} file of tensors")


def test_list_instead_of_dict(linked: Linked) -> None:
    folder = linked("pth")
    replace(folder / "motion_extractor.pth", b"")
    torch.save([torch.zeros(1)], folder / "motion_extractor.pth")
    failure(folder, "expected a dict of tensors, came a value of type list")


class Hostile:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("wrap", ["torch", "pickle", "pickle2"])
@pytest.mark.parametrize("function", [os.system, eval, subprocess.call])
def test_hostile_pickle_runs_nothing(
    linked: Linked, tmp_path: Path, function: Callable[..., object], wrap: str
) -> None:
    folder, mark = linked("pth"), tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')" if function is eval else f"touch {mark}"
    content = {"first.conv.weight": Hostile(function, code)}
    path = folder / "appearance_feature_extractor.pth"
    path.unlink()
    if wrap == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2 if wrap == "pickle2" else 4))
    failure(folder, str(path), "nothing was run")
    assert not mark.exists()


def test_hostile_pickle_is_named(linked: Linked) -> None:
    folder = linked("pth")
    replace(folder / "motion_extractor.pth", {"a": Hostile(os.system, "true")})
    failure(folder, f"a pickle that wants {os.system.__module__}.system; it was refused")


def test_absent_config_means_the_full_model(linked: Linked) -> None:
    folder = linked("safetensors")
    (folder / "config.json").unlink()
    failure(folder, "without a config.json the published model's sizes are expected")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "config must be a mapping, got list"),
        ('{"model_type": "x"}', "unknown key 'model_type'"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xfe\x00", "codec can't decode"),
    ],
)
def test_bad_config(linked: Linked, text: str | bytes, message: str) -> None:
    folder = linked("safetensors")
    replace(folder / "config.json", text if isinstance(text, bytes) else text.encode())
    failure(folder, str(folder / "config.json"), message)


def test_saving_overwrites_and_leaves_no_temporary_file(tmp_path: Path, tiny: LivePortrait) -> None:
    folder = tmp_path / "new" / "folder"
    LivePortrait.random(1, LivePortraitConfig.tiny()).save_pretrained(folder)
    tiny.save_pretrained(str(folder))
    assert_equal_models(load(folder), tiny)
    assert len(list(folder.iterdir())) == 6
    assert json.loads((folder / "config.json").read_text())["image_size"] == 64


@pytest.mark.parametrize("suffix", FORMATS)
def test_failed_saving_leaves_the_folder_as_it_was(
    tmp_path: Path, tiny: LivePortrait, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    (tmp_path / f"motion_extractor.{suffix}").write_text("before")

    def fail(_state: object, path: Path, **_kwargs: object) -> None:
        if "spade_generator" in path.name:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"half")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(LpkernelsError, match=r"cannot write the weights into .*No space left"):
        tiny.save_pretrained(tmp_path, suffix)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(f"motion_extractor.{suffix}", "before")]


def test_saving_under_a_file(tmp_path: Path, tiny: LivePortrait) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LpkernelsError, match="cannot write the weights"):
        tiny.save_pretrained(tmp_path / "file" / "weights")


def test_saving_refusals(tiny: LivePortrait, saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format must be 'safetensors' or 'pth', got 'onnx'"):
        tiny.save_pretrained(tmp_path, "onnx")
    with pytest.raises(InputError, match="would be read in place of"):
        tiny.save_pretrained(saved["safetensors"], "pth")


def test_loading_imports_no_compiler(tmp_path: Path) -> None:
    """Which takes longer than everything else that a program waits for."""
    LivePortrait.random(config=LivePortraitConfig.named("tiny")).save_pretrained(tmp_path)
    program = """
import sys, torch
before = set(sys.modules)
import lpkernels
lpkernels.LivePortrait.from_pretrained(sys.argv[1])
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & (set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
