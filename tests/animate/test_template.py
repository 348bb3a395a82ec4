"""Motion templates: both key styles of the original's pickles, safetensors, and every way a file can be wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from lpkernels.animate import _unpickle
from lpkernels.animate import template as template_module
from lpkernels.animate.motion import source_keypoints
from lpkernels.animate.template import MotionTemplate, load_template, save_template
from lpkernels.errors import InputError, LpkernelsError
from tests.animate.motions import random_motion

N = 4
METADATA = "lpkernels.motion_template"


def make_template(**changes: Any) -> MotionTemplate:
    motion = random_motion(N)
    return dataclasses.replace(MotionTemplate(N, 30, motion.R, motion.exp, motion.t, motion.scale), **changes)


def full_template() -> MotionTemplate:
    motion = random_motion(N)
    x_s = source_keypoints(motion)
    return make_template(kp=motion.kp, x_s=x_s, c_eyes=torch.rand(N, 2), c_lip=torch.rand(N, 1))


def original(template: MotionTemplate, older: bool = False) -> dict[str, Any]:
    """The template as the original program pickles it."""
    tensors = {name: value.numpy() for name, value in template.tensors().items()}
    eyes, lips = tensors.pop("c_eyes", None), tensors.pop("c_lip", None)
    keys = {name: "R_d" if older and name == "R" else name for name in tensors}
    motion = [{keys[name]: value[i : i + 1] for name, value in tensors.items()} for i in range(template.n_frames)]
    content: dict[str, Any] = {"n_frames": template.n_frames, "output_fps": int(template.fps), "motion": motion}
    for name, values in (("eyes", eyes), ("lip", lips)):
        if values is not None:
            content[f"c_d_{name}_lst" if older else f"c_{name}_lst"] = [value[None] for value in values]
    return content


def write(path: Path, content: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def assert_same(came: MotionTemplate, expected: MotionTemplate) -> None:
    assert (came.n_frames, came.fps) == (expected.n_frames, expected.fps)
    assert came.tensors().keys() == expected.tensors().keys()
    for name, value in came.tensors().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, getattr(expected, name)), name


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("make", [make_template, full_template])
def test_original_pickles(make: Any, older: bool, protocol: int, tmp_path: Path) -> None:
    template = make()
    assert_same(load_template(write(tmp_path / "t.pkl", original(template, older), protocol)), template)


def test_numpy_1_names_and_unknown_keys(tmp_path: Path) -> None:
    content = original(make_template()) | {"made_with": ["another", ("program", None)]}
    path = tmp_path / "T.PKL"
    path.write_bytes(pickle.dumps(content, 3).replace(b"numpy._core", b"numpy.core"))
    assert_same(load_template(path), make_template())


def test_frame_rate_of_pickles(tmp_path: Path) -> None:
    content = original(make_template())
    content["output_fps"] = np.float64(29.97)
    assert load_template(write(tmp_path / "t.pkl", content)).fps == 29.97
    del content["output_fps"]
    assert load_template(str(write(tmp_path / "t.pkl", content))).fps == 25


def test_float64_pickles_become_float32(tmp_path: Path) -> None:
    content = original(make_template())
    for item in content["motion"]:
        item["exp"] = item["exp"].astype(">f8")
    assert_same(load_template(write(tmp_path / "t.pkl", content)), make_template())


@pytest.mark.parametrize("make", [make_template, full_template])
def test_safetensors_round_trip(make: Any, tmp_path: Path) -> None:
    template = dataclasses.replace(make(), fps=30000 / 1001)
    path = tmp_path / "t.safetensors"
    save_template(path, template)
    assert_same(load_template(path), template)
    assert list(tmp_path.iterdir()) == [path]
    assert json.loads(_header(path)["__metadata__"][METADATA])["n_frames"] == N


def test_frames_of_a_template() -> None:
    template = full_template()
    motions = list(template.motions())
    assert len(motions) == N
    assert template.kp is not None
    for i, motion in enumerate(motions):
        assert motion.kp is not None
        assert torch.equal(motion.kp, template.kp[i : i + 1])
        assert torch.equal(motion.scale, template.scale[i : i + 1])
    assert torch.equal(template.motion(-1).R, template.R[-1:])
    assert make_template().motion(0).kp is None
    with pytest.raises(IndexError):
        template.motion(N)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_frames": 0}, "n_frames must be a whole number of 1 or more, got 0"),
        ({"n_frames": 2.0}, "n_frames must be a whole number of 1 or more, got 2.0"),
        ({"n_frames": 5}, r"R must have shape \(5, 3, 3\), got \(4, 3, 3\)"),
        ({"fps": 0}, "fps must be a number above 0, at most 1000; got 0"),
        ({"fps": float("nan")}, "fps must be .* got nan"),
        ({"fps": "25"}, "fps must be .* got str"),
        ({"R": None}, r"R must be a float32 tensor \(4, 3, 3\), got NoneType"),
        ({"t": torch.zeros(N, 3, dtype=torch.float64)}, r"t must be a float32 tensor \(4, 3\), got torch.float64"),
        ({"exp": torch.zeros(N, 63)}, r"exp must have shape \(4, K, 3\), got \(4, 63\)"),
        ({"exp": torch.zeros(N, 0, 3)}, r"exp must have shape \(4, K, 3\), got \(4, 0, 3\)"),
        ({"kp": torch.zeros(N, 20, 3)}, r"kp must have shape \(4, 21, 3\), got \(4, 20, 3\)"),
        ({"c_eyes": torch.zeros(N, 1)}, r"c_eyes must have shape \(4, 2\)"),
        ({"scale": torch.tensor([[1.0], [1.0], [0.0], [1.0]])}, "scale, frame 2: must be positive, got 0"),
        ({"t": torch.tensor([[0.0] * 3, [0, np.nan, 0], [0.0] * 3, [0.0] * 3])}, "t, frame 1: must be finite, got nan"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_template(**changes)


def _set(content: dict, frame: int, **values: Any) -> dict:
    content["motion"][frame].update(values)
    return content


def _without(content: dict, *keys: str) -> dict:
    return {key: value for key, value in content.items() if key not in keys}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: [c], "expected a dict with n_frames and motion, got list"),
        (lambda c: _without(c, "motion"), "key 'motion' is missing, got 'c_eyes_lst, c_lip_lst, n_frames, output_fps'"),
        (lambda c: _without(c, "n_frames"), "key 'n_frames' is missing"),
        (lambda c: c | {"n_frames": 3}, "n_frames must be the number of frames in motion, 4; got 3"),
        (lambda c: c | {"n_frames": 10**5000}, "n_frames must be the number .* got int"),
        (lambda c: c | {"output_fps": 10**400}, "fps must be a number above 0, at most 1000; got int"),
        (lambda c: c | {"output_fps": [25]}, "fps must be .* got list"),
        (lambda c: c | {"motion": [], "n_frames": 0}, "motion must be a list of 1 to 100000 frames, got 0 frames"),
        (lambda c: c | {"motion": {}}, "motion must be a list .* got dict"),
        (lambda c: c | {"motion": [*c["motion"][:3], 7]}, "motion, frame 3: expected a dict, got int"),
        (lambda c: c | {"motion": [*c["motion"][:3], {}]}, "motion, frame 3: key 'R' is missing"),
        (
            lambda c: _set(c, 1, exp=np.zeros((1, 20, 3), "f4")),
            r"exp, frame 1: .* \(1, 21, 3\), got float32 \(1, 20, 3\)",
        ),
        (lambda c: _set(c, 0, exp=[0.0]), r"exp, frame 0: expected a float array \(1, K, 3\), got list"),
        (lambda c: _set(c, 0, exp=np.zeros((1, 129, 3))), "exp, frame 0: expected at most 128 keypoints, got 129"),
        (
            lambda c: _set(c, 2, t=np.zeros((1, 3), "i4")),
            r"t, frame 2: expected a float array \(1, 3\), got int32 \(1, 3\)",
        ),
        (lambda c: _set(c, 2, R=np.full((1, 3, 3), np.inf)), "R, frame 2: must be finite, got inf"),
        (lambda c: _set(c, 2, R=np.full((1, 3, 3), 1e300)), "R, frame 2: must be finite, got inf"),
        (lambda c: _set(c, 3, scale=np.array([[-1.0]])), "scale, frame 3: must be positive, got -1"),
        (lambda c: c | {"c_eyes_lst": []}, "c_eyes_lst must be a list of 1 to 100000 frames, got 0 frames"),
        (lambda c: c | {"c_lip_lst": c["c_lip_lst"][:2]}, "c_lip_lst must have one entry a frame, 4; got 2"),
        (
            lambda c: c | {"c_eyes_lst": c["c_lip_lst"]},
            r"c_eyes_lst, frame 0: expected a float array \(1, 2\), got float32",
        ),
    ],
)
def test_wrong_pickles_are_named(spoil: Any, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.pkl", spoil(original(full_template())))
    with pytest.raises(InputError, match=words) as caught:
        load_template(path)
    assert str(caught.value).startswith(f"motion template {path}: ")
    assert str(caught.value).isprintable()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.command = f"echo ran > {marker}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = original(make_template()) | {"extra": Attack(marker)}
    with pytest.raises(InputError, match=r"t\.pkl: the pickle asks for (posix|nt)\.system: refused"):
        load_template(write(tmp_path / "t.pkl", content))
    assert not marker.exists()


def test_small_pickle_cannot_become_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_PICKLED_FRAMES", 10)
    frame = original(make_template())["motion"][0]
    path = write(tmp_path / "t.pkl", {"n_frames": 11, "motion": [frame] * 11})
    with pytest.raises(InputError, match="motion must be a list of 1 to 10 frames, got 11 frames"):
        load_template(path)
    monkeypatch.setattr(_unpickle, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="must have at most 100 bytes, got"):
        load_template(path)


def test_files_that_are_no_templates(tmp_path: Path) -> None:
    empty, folder, other = tmp_path / "empty.pkl", tmp_path / "folder.pkl", tmp_path / "t.json"
    empty.touch()
    folder.mkdir()
    other.write_text("{}")
    noise = tmp_path / "noise.pkl"
    noise.write_bytes(b"not a pickle at all")
    for path, words in (
        (tmp_path / "no.pkl", "does not exist"),
        (empty, "is empty"),
        (folder, "is not a file"),
        (other, r"must end in \.pkl or \.safetensors, got '\.json'"),
        (noise, "damaged or truncated"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            load_template(path)
        assert path.name in str(caught.value)


@pytest.mark.parametrize("size", [1, 8, 100, 1000])
def test_truncated_safetensors(size: int, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_template(path, make_template())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"t\.safetensors: the file is damaged or truncated"):
        load_template(path)


@pytest.mark.parametrize(
    ("metadata", "tensors", "words"),
    [
        ({}, {}, "expected metadata 'lpkernels.motion_template'"),
        ({METADATA: "{"}, {}, "metadata must hold version, n_frames and fps as JSON"),
        ({METADATA: "[1]"}, {}, "metadata must hold version"),
        ({METADATA: '{"version": 1}'}, {}, "metadata must hold version"),
        ({METADATA: '{"version": 2, "n_frames": 4, "fps": 30}'}, {}, "version must be 1, got 2"),
        ({METADATA: '{"version": 1, "n_frames": "4", "fps": 30}'}, {}, "n_frames must be a whole number .* got str"),
        ({METADATA: '{"version": 1, "n_frames": 7, "fps": 30}'}, {}, r"R must have shape \(7, 3, 3\)"),
        (None, {"R": None}, r"missing \['R'\], unknown \[\]"),
        (None, {"pose": torch.zeros(4)}, r"missing \[\], unknown \['pose'\]"),
        (None, {"t": torch.zeros(4, 3, dtype=torch.int32)}, "t must have a float dtype, got torch.int32"),
        (None, {"t": torch.full((4, 3), float("inf"))}, "t, frame 0: must be finite, got inf"),
    ],
)
def test_wrong_safetensors_are_named(metadata: Any, tensors: Any, words: str, tmp_path: Path) -> None:
    if metadata is None:
        metadata = {METADATA: '{"version": 1, "n_frames": 4, "fps": 30}'}
    content = {name: value for name, value in (make_template().tensors() | tensors).items() if value is not None}
    path = tmp_path / "t.safetensors"
    safetensors.torch.save_file(content, path, metadata)
    with pytest.raises(InputError, match=words):
        load_template(path)


def test_half_precision_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    content = {name: value.half() for name, value in make_template().tensors().items()}
    safetensors.torch.save_file(content, path, {METADATA: '{"version": 1, "n_frames": 4, "fps": 30}'})
    assert torch.equal(load_template(path).exp, content["exp"].float())


def test_loaded_template_does_not_depend_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_template(path, make_template())
    loaded = load_template(path)
    path.write_bytes(b"")
    assert_same(loaded, make_template())


def test_saving_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.safetensors"
    save_template(path, make_template())
    before = path.read_bytes()

    def full_disk(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(LpkernelsError, match=r"cannot write motion template .*: No space left on device"):
        save_template(path, full_template())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unusable_names_for_saving(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.safetensors, got '\.pkl'"):
        save_template(tmp_path / "t.pkl", make_template())
    with pytest.raises(InputError, match="does not exist"):
        save_template(tmp_path / "no" / "t.safetensors", make_template())


def _header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
