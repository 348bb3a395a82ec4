"""Builds the two binaries of lpkernels: the op library (PyTorch's stable ABI) and lpkernels._C (pybind11).

CUDA is built with nvcc and a CUDA build of torch, if a GPU is visible, TORCH_CUDA_ARCH_LIST is set or FORCE_CUDA=1;
otherwise the C++ ops for the CPU alone; without a C++ compiler, nothing: the package then runs on plain PyTorch.
Each choice is printed (`pip install -v`), and `lpkernels doctor` repeats it later. LPKERNELS_NO_EXT=1 skips the build.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020b000000000000"  # the op library runs on torch 2.11 and later
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0a;10.0;12.0+PTX"


def say(message: str) -> None:
    print(f"lpkernels: {message}", file=sys.stderr, flush=True)


def sources(suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(f"*{suffix}"))


def has_compiler() -> bool:
    if sys.platform == "win32":
        return True  # setuptools finds MSVC by itself
    names = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    return any(name and shutil.which(name) for name in names)


def wants_cuda() -> bool:
    """Whether to build CUDA code; what was asked for and cannot be had is an error, not a smaller build."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    forced = os.environ.get("FORCE_CUDA") == "1"
    asked = forced or "TORCH_CUDA_ARCH_LIST" in os.environ or torch.cuda.is_available()
    missing = []
    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / ("nvcc.exe" if os.name == "nt" else "nvcc")).exists():
        missing.append("nvcc was not found (set CUDA_HOME)")
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is built without CUDA")
    if forced and missing:
        raise SystemExit(f"lpkernels: FORCE_CUDA=1, but {' and '.join(missing)}")
    if not asked:
        say("no GPU visible, TORCH_CUDA_ARCH_LIST unset: building C++ CPU ops only (FORCE_CUDA=1 builds CUDA)")
    elif missing:
        say(f"building C++ CPU ops only: {' and '.join(missing)}")
    return asked and not missing


def extensions() -> tuple[list, dict]:
    if os.environ.get("LPKERNELS_NO_EXT") == "1":
        say("LPKERNELS_NO_EXT=1: no extension is built, every op runs on plain PyTorch")
        return [], {}
    if not has_compiler():
        say("no C++ compiler found: no extension is built, every op runs on plain PyTorch (install g++ or clang++)")
        return [], {}
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class Build(BuildExtension):
        def get_export_symbols(self, ext):  # the op library is no Python module: it has no PyInit to export
            return ext.export_symbols if ext.name.endswith("._ops") else super().get_export_symbols(ext)

    cuda = wants_cuda()
    if cuda:
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    version = re.search(r'__version__ = "(.+)"', (ROOT / "lpkernels/__init__.py").read_text()).group(1)
    flags = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"] if os.name != "nt" else ["/O2", "/std:c++20"]
    nvcc_flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-DNDEBUG", "-Xcompiler=-fvisibility=hidden"]
    include = [str(ROOT / "csrc")]
    target = [("TORCH_TARGET_VERSION", TORCH_TARGET), *([("USE_CUDA", None)] if cuda else [])]
    if cuda and "9.0a" in architectures():
        target.append(("LPKERNELS_SM90A", None))
    ops_sources = [source for source in sources(".cpp") if not source.endswith("build_info.cpp")]
    ops = (CUDAExtension if cuda else CppExtension)(
        "lpkernels._ops",
        ops_sources + (sources(".cu") if cuda else []),
        include_dirs=[*include, *([cutlass_headers()] if cuda else [])],
        define_macros=target,
        extra_compile_args={"cxx": flags, "nvcc": nvcc_flags} if cuda else flags,
        py_limited_api=True,  # the suffix .abi3: one file for every Python
    )
    facts = {
        "LPKERNELS_VERSION": version,
        "LPKERNELS_TORCH_VERSION": torch.__version__,
        "LPKERNELS_CUDA_VERSION": torch.version.cuda if cuda else "",
        "LPKERNELS_CUDA_ARCHITECTURES": architectures() if cuda else "",
    }
    build_info = Extension(
        "lpkernels._C",
        ["csrc/build_info.cpp"],
        include_dirs=[*include, pybind11.get_include()],
        define_macros=[(name, f'"{value}"') for name, value in facts.items()],
        extra_compile_args=flags,
        language="c++",
    )
    say(f"building with torch {torch.__version__}, {f'CUDA {torch.version.cuda}' if cuda else 'CPU only'}")
    return [ops, build_info], {"build_ext": Build}


def architectures() -> str:
    """What to compile for: as asked, else the GPUs at hand, else a default list; Hopper's own code needs 9.0a."""
    import torch

    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return listed
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return ";".join(f"{major}.{minor}" + "a" * (major == 9) for major, minor in sorted(found)) or DEFAULT_ARCHITECTURES


def cutlass_headers() -> str:
    """The include folder of CUTLASS: of CUTLASS_HOME, or of the package nvidia-cutlass."""
    home = os.environ.get("CUTLASS_HOME")
    spec = None if home else importlib.util.find_spec("cutlass_library")
    if home is None and spec is None:
        raise SystemExit("lpkernels: the CUDA build needs CUTLASS's headers: pip install 'nvidia-cutlass>=4.2'")
    include = Path(home or Path(spec.submodule_search_locations[0]) / "source") / "include"
    if not (include / "cute/tensor.hpp").exists():
        raise SystemExit(f"lpkernels: no CUTLASS headers in {include} (CUTLASS_HOME, package nvidia-cutlass)")
    return str(include)


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
