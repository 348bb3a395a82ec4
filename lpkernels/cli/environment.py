"""What `lpkernels doctor` reports: versions, GPUs, compilers, the op library, each op's backend, and what to mend."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import lpkernels

PACKAGES = ("torch", "triton", "numpy", "scipy", "av", "pillow", "safetensors", "nvtx", "tqdm")
OPTIONAL_PACKAGES = ("huggingface_hub", "matplotlib", "mtcnn", "psutil")
REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall -v ."


def collect() -> dict[str, Any]:
    """All facts as plain dicts, lists and strings (JSON), ``advice`` last: pairs of what is missing and the mend."""
    facts: dict[str, Any] = {
        "lpkernels": lpkernels.__version__,
        "python": f"{platform.python_version()} ({platform.platform()})",
        "packages": {name: installed(name) for name in (*PACKAGES, *OPTIONAL_PACKAGES)},
        "driver": driver(),
        "tools": {"c++": compiler(), "nvcc": nvcc(), "nsys": shutil.which("nsys"), "ncu": shutil.which("ncu")},
    }
    if facts["packages"]["torch"] is not None:
        facts |= {"cuda": cuda(), "gpus": gpus(), "library": library(), "ops": ops()}
    facts["advice"] = advice(facts)
    return facts


def installed(package: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The NVIDIA driver's version, whether or not torch can use it."""
    return _line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def compiler() -> str | None:
    """The first line of ``--version`` of the C++ compiler that a build would use."""
    names = (os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++")
    return next((line for name in names if name and (line := _line(name, "--version"))), None)


def nvcc() -> str | None:
    """Release and path of nvcc: of CUDA_HOME, on PATH, or where the toolkit installs itself."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = str(Path(home) / "bin/nvcc") if home else shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    release = re.search(r"release (\S+),", _output(path, "--version") or "")
    return f"{release.group(1)} ({path})" if release else None


def cuda() -> dict[str, Any]:
    """The CUDA and cuDNN versions torch was built with, and whether it can use a GPU."""
    import torch

    return {
        "torch": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "available": torch.cuda.is_available(),
    }


def gpus() -> list[dict[str, Any]]:
    """Name, compute capability, memory in GiB and multiprocessors of each GPU that torch can use."""
    import torch

    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {
            "name": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_gib": round(gpu.total_memory / 2**30, 1),
            "multiprocessors": gpu.multi_processor_count,
        }
        for gpu in properties
    ]


def library() -> dict[str, Any]:
    """Where the op library is or why it is not loaded, how it was built, and its CUDA kernels."""
    from lpkernels import _lib

    status = _lib.status()
    return {
        "path": None if status.path is None else str(status.path),
        "error": status.error,
        "build": _lib.build_info(),
        "kernels": _lib.kernel_attributes(),
    }


def ops() -> dict[str, dict[str, dict[str, Any]]]:
    """op -> device -> the backend it will use, and why those before it in the order were passed over."""
    import torch

    from lpkernels.ops import registry

    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    choices = {name: {device: op.choose(device) for device in devices} for name, op in registry().items()}
    return {
        name: {device: {"backend": choice.backend, "passed": choice.passed} for device, choice in by_device.items()}
        for name, by_device in choices.items()
    }


def advice(facts: dict[str, Any]) -> list[dict[str, str]]:
    """What is missing and the command that mends it; empty if this installation can do all its machine allows."""
    found: list[tuple[str, str]] = []
    for name in PACKAGES:
        if facts["packages"][name] is None and (name != "triton" or platform.system() == "Linux"):
            found.append((f"the package {name} is not installed", f"pip install {name}"))
    if "library" in facts:
        found += _library_advice(facts) + _gpu_advice(facts)
    if facts["packages"]["huggingface_hub"] is None:
        found.append(("optional: --weights OWNER/NAME needs huggingface_hub", "pip install huggingface_hub"))
    if facts["packages"]["mtcnn"] is None:
        found.append(("optional: --crop auto finds faces with mtcnn", "pip install 'lpkernels[face]'"))
    return [{"missing": missing, "mend": mend} for missing, mend in found]


def _library_advice(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if facts["library"]["error"] is None:
        return []
    mend = f"in a checkout of lpkernels: {REBUILD}"
    if facts["tools"]["c++"] is None:
        mend = f"install a C++ compiler (Debian, Ubuntu: apt install g++), then {mend}"
    return [(f"ops run on plain PyTorch: {facts['library']['error']}", mend)]


def _gpu_advice(facts: dict[str, Any]) -> list[tuple[str, str]]:
    version, build = facts["cuda"]["torch"], facts["library"]["build"]
    if not facts["cuda"]["available"]:
        if facts["driver"] is None:
            return []
        if version is None:
            return [
                ("torch is a CPU build and cannot use the GPU", "install a CUDA build: https://pytorch.org/get-started")
            ]
        return [
            (f"torch (CUDA {version}) cannot use the GPU with driver {facts['driver']}", "update the NVIDIA driver")
        ]
    if facts["library"]["error"] is not None:
        return []
    rebuild = f"in a checkout of lpkernels: FORCE_CUDA=1 {REBUILD}"
    if not build.get("cuda"):
        if facts["tools"]["nvcc"] is None:
            rebuild = f"install the CUDA toolkit {version} or set CUDA_HOME, then {rebuild}"
        return [("the op library was built without CUDA", rebuild)]
    left_out = sorted(
        {gpu["capability"] for gpu in facts["gpus"] if not covers(build["architectures"], gpu["capability"])}
    )
    if left_out:
        rebuild = rebuild.replace("FORCE_CUDA=1", f"TORCH_CUDA_ARCH_LIST='{';'.join(left_out)}'")
        return [(f"the op library was built for {build['architectures']}, not for {', '.join(left_out)}", rebuild)]
    return []


def covers(architectures: str, capability: str) -> bool:
    """Whether code built for ``architectures`` ("8.0;9.0a;12.0+PTX") runs on a GPU of ``capability`` ("8.6")."""
    gpu = tuple(int(part) for part in capability.split("."))
    for entry in re.split(r"[;\s,]+", architectures):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if match is None:
            continue
        built = (int(match[1]), int(match[2]))
        if built == gpu or (not match[3] and built < gpu and (built[0] == gpu[0] or match[4])):
            return True
    return False


def _line(*command: str) -> str | None:
    return next(iter((_output(*command) or "").splitlines()), None)


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
