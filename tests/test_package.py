"""The package as it is shipped: sdist and wheel build, and the wheel works where the source never was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import lpkernels

ROOT = Path(__file__).parents[1]
HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program away from the source tree; its output, or a failure that shows it."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def copy_source(folder: Path) -> Path:
    """A copy of what belongs to the project, so that a build leaves nothing in the checkout."""
    names = [
        "csrc",
        "lpkernels",
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "constraints.txt",
    ]
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    for name in names:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=ignore)
        else:
            shutil.copy2(path, folder / name)
    return folder


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist and wheel, the wheel built from the sdist: what the sdist forgets, the wheel lacks."""
    source = copy_source(tmp_path_factory.mktemp("source"))
    # No isolation: an isolated build would download a second torch and compile against that one.
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def fresh_python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new virtual environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (wheel,) = dist.glob("*.whl")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # torch and the other dependencies come from this environment (--system-site-packages would show the base
    # interpreter's). Added after the install, so that pip does not take a checkout installed here for this wheel, and
    # behind the new environment's own packages: `import lpkernels` can only find the wheel.
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    shared = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (Path(purelib) / "dependencies.pth").write_text("\n".join(shared) + "\n")
    return python


@pytest.mark.slow
def test_the_sdist_holds_what_a_build_needs(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "lpkernels/py.typed"} <= names


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/", 1)[0] for name in names}
    assert tops == {"lpkernels", f"lpkernels-{lpkernels.__version__}.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lpkernels").rglob("*.py")}
    assert modules <= set(names)
    assert "lpkernels/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_imports_in_a_fresh_environment(fresh_python, tmp_path):
    program = "import json, lpkernels; print(json.dumps([lpkernels.__version__, lpkernels.__file__]))"
    version, file = json.loads(run(fresh_python, "-c", program, cwd=tmp_path))
    assert version == lpkernels.__version__
    assert Path(file).is_relative_to(fresh_python.parents[1])


@pytest.mark.slow
def test_every_public_name_of_the_wheel_is_there(fresh_python, tmp_path):
    program = (
        "import lpkernels; [getattr(lpkernels, name) for name in lpkernels.__all__]; print(len(lpkernels.__all__))"
    )
    assert int(run(fresh_python, "-c", program, cwd=tmp_path)) == len(lpkernels.__all__)


@pytest.mark.slow
def test_the_wheels_program_runs_and_loads_the_op_library(fresh_python, tmp_path):
    program = fresh_python.with_name("lpkernels" + fresh_python.suffix)
    assert run(program, "--version", cwd=tmp_path).strip() == f"lpkernels {lpkernels.__version__}"
    facts = json.loads(run(program, "doctor", "--json", cwd=tmp_path))
    if HAS_COMPILER:
        assert facts["library"]["error"] is None
        assert Path(facts["library"]["path"]).is_relative_to(fresh_python.parents[1])
        assert facts["library"]["build"]["version"] == lpkernels.__version__
        assert facts["ops"]["flow_warp"]["cpu"]["backend"] == "cpu"


@pytest.mark.slow
def test_the_wheel_animates(fresh_python, tmp_path):
    output = run(fresh_python, "-m", "lpkernels", "demo", "--config", "tiny", "--frames", "2", cwd=tmp_path)
    assert "2 frames in" in output
    assert (tmp_path / "demo" / "animated.mp4").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LPKERNELS_NO_EXT": "1"}, "no extension is built"),
        ({"PATH": "", "CXX": ""}, "no C++ compiler found"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_python_and_says_so(tmp_path, environment, said):
    source = copy_source(tmp_path)
    output = run(sys.executable, "-m", "build", "--no-isolation", "--wheel", cwd=source, **environment)
    assert said in output
    (wheel,) = (source / "dist").glob("*.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".so", ".pyd"))]


def test_the_version_is_the_distributions(tmp_path):
    """pyproject takes it from the package: no second place to change."""
    program = "import lpkernels, sys; print(lpkernels.__version__, 'torch' in sys.modules)"
    printed = run(sys.executable, "-c", program, cwd=ROOT).split()
    assert printed == [lpkernels.__version__, "False"], "import lpkernels must not wait for torch"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Animater'"):
        _ = lpkernels.Animater


def test_dir_lists_the_public_names():
    assert set(lpkernels.__all__) <= set(dir(lpkernels))
