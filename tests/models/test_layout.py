"""Finding the weight files of both variants in every folder layout, and downloading them."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from lpkernels.errors import InputError, LpkernelsError
from lpkernels.models import LivePortrait, checkpoint
from lpkernels.models.layout import BASE_NETWORKS, STITCHING, find_files

HUMANS = "liveportrait/base_models"
ANIMALS = "liveportrait_animals/base_models"


def touch(folder: Path, names: tuple[str, ...], suffix: str = ".pth") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}{suffix}").touch()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The original's download: both variants and the humans' stitching."""
    root = tmp_path / "pretrained_weights"
    touch(root / HUMANS, BASE_NETWORKS)
    touch(root / "liveportrait/retargeting_models", (STITCHING,))
    touch(root / f"{ANIMALS}_v1.1", BASE_NETWORKS)
    touch(root / ANIMALS, BASE_NETWORKS)
    touch(root / "liveportrait_animals/retargeting_models", (STITCHING,))
    return root


@pytest.mark.parametrize("given", [".", "..", "liveportrait", HUMANS])
def test_humans(weights: Path, given: str) -> None:
    files = find_files(weights / given)
    root = weights.resolve()
    assert {name: path.resolve() for name, path in files.networks.items()} == {
        **{name: root / HUMANS / f"{name}.pth" for name in BASE_NETWORKS},
        STITCHING: root / "liveportrait/retargeting_models" / f"{STITCHING}.pth",
    }
    assert files.config is None


@pytest.mark.parametrize("given", [".", "..", "liveportrait_animals", f"{ANIMALS}_v1.1"])
def test_animals_take_version_1_1_and_the_humans_stitching(weights: Path, given: str) -> None:
    files = find_files(weights / given, "animals")
    assert files.networks["warping_module"].resolve() == weights / f"{ANIMALS}_v1.1" / "warping_module.pth"
    assert files.networks[STITCHING].resolve() == weights / "liveportrait/retargeting_models" / f"{STITCHING}.pth"


def test_older_animals_and_their_own_stitching(tmp_path: Path) -> None:
    touch(tmp_path / ANIMALS, BASE_NETWORKS)
    own = tmp_path / "liveportrait_animals/retargeting_models"
    touch(own, (STITCHING,))
    files = find_files(tmp_path, "animals")
    assert files.networks["motion_extractor"].parent == tmp_path / ANIMALS
    assert files.networks[STITCHING].parent == own


def test_working_directory(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights / HUMANS)
    assert find_files(Path()).networks[STITCHING].is_file()


def test_flat_folder_config_and_suffix(tmp_path: Path) -> None:
    touch(tmp_path, (*BASE_NETWORKS, STITCHING))
    touch(tmp_path, ("motion_extractor",), ".safetensors")
    (tmp_path / "config.json").touch()
    files = find_files(tmp_path)
    assert files.config == tmp_path / "config.json"
    assert files.networks["motion_extractor"].suffix == ".safetensors"
    assert files.networks["warping_module"].suffix == ".pth"


def test_the_other_variants_folder_is_not_taken(weights: Path) -> None:
    with pytest.raises(InputError, match="no animals weights in"):
        find_files(weights / "liveportrait", "animals")
    with pytest.raises(InputError, match="no humans weights in"):
        find_files(weights / "liveportrait_animals", "humans")


def test_nothing_there_lists_the_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"looked for appearance_feature_extractor, .* in liveportrait/base_models, "):
        find_files(tmp_path)


@pytest.mark.parametrize("name", ["spade_generator", STITCHING])
def test_one_missing_file_is_named(weights: Path, name: str) -> None:
    for path in (weights / "liveportrait").rglob(f"{name}.pth"):
        path.unlink()
    with pytest.raises(InputError, match=rf"{name}.safetensors or {name}.pth is missing; looked in .*liveportrait"):
        find_files(weights)


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="does not exist"):
        find_files(tmp_path / "absent")
    with pytest.raises(InputError, match="is a file; expected the folder"):
        find_files(tmp_path / "file")
    with pytest.raises(InputError, match="variant must be one of humans, animals; got 'robots'"):
        checkpoint.locate(tmp_path, "robots")
    with pytest.raises(InputError, match="cannot look into the weights folder"):
        checkpoint.locate("x" * 5000)


class FakeHub(types.ModuleType):
    """``huggingface_hub`` with a snapshot that is a local folder, or an error."""

    def __init__(self, answer: Path | Exception) -> None:
        super().__init__("huggingface_hub")
        self.answer = answer
        self.calls: list[dict[str, object]] = []

    def snapshot_download(self, **kwargs: object) -> str:
        self.calls.append(kwargs)
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def test_download(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    hub = FakeHub(saved["safetensors"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model = LivePortrait.from_pretrained("KwaiVGI/LivePortrait")
    assert model.config.image_size == 64
    (call,) = hub.calls
    assert call["repo_id"] == "KwaiVGI/LivePortrait"
    assert call["ignore_patterns"] == ["liveportrait_animals/*"]
    allowed = call["allow_patterns"]
    assert isinstance(allowed, list)
    assert "*spade_generator.pth" in allowed
    assert "config.json" in allowed


def test_failed_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", FakeHub(ConnectionError("no\nnetwork")))
    with pytest.raises(LpkernelsError, match="could not download weights from 'owner/name': no network"):
        checkpoint.locate("owner/name")


def test_download_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"'owner/name' is no existing folder.*install huggingface_hub"):
        checkpoint.locate("owner/name")


def test_an_existing_folder_is_never_downloaded(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    hub = FakeHub(RuntimeError("must not be called"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(weights.parent)
    checkpoint.locate("pretrained_weights/liveportrait")
    with pytest.raises(InputError, match="does not exist"):
        checkpoint.locate(Path("owner/name"))
    assert hub.calls == []
