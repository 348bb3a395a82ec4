#!/usr/bin/env bash
# Builds the CUDA op library and lpkernels._C where torch has no CUDA: for a GPU machine that shall not spend its time
# compiling. Needs nvcc and CUTLASS's headers (package nvidia-cutlass).
# Usage: scripts/cross_build.sh OUT [PYTHON] [ARCHITECTURES, "9.0a"]
#   OUT gets _ops.abi3.so, for any Python and torch 2.11 or later; put it next to lpkernels/__init__.py.
#   lpkernels._C belongs to one Python; build it there: g++ on csrc/build_info.cpp takes a second (setup.py).
set -euo pipefail
mkdir -p "${1:?usage: scripts/cross_build.sh OUT [PYTHON] [ARCHITECTURES]}"
out=$(realpath "$1")
python=$(command -v "${2:-python}")
architectures=${3:-9.0a}
cd "$(dirname "$0")/.."

mapfile -t includes < <("$python" -c '
import cutlass_library, pathlib
from torch.utils.cpp_extension import include_paths
print("\n".join([*include_paths(), str(pathlib.Path(cutlass_library.__file__).parent / "source/include")]))')
nvcc=$(command -v "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc")
torch_lib=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')
target=$(sed -n 's/^TORCH_TARGET = "\(.*\)".*/\1/p' setup.py)
flags=(-c -std=c++20 -O3 -DNDEBUG -DUSE_CUDA "-DTORCH_TARGET_VERSION=$target" -Icsrc)
for path in "${includes[@]}"; do
  flags+=(-isystem "$path")
done
nvcc_flags=(--expt-relaxed-constexpr -Xcompiler=-fPIC,-fvisibility=hidden)
for architecture in ${architectures//;/ }; do
  name=${architecture/./}
  nvcc_flags+=(-gencode "arch=compute_$name,code=sm_$name")
  if [ "$architecture" = 9.0a ]; then
    flags+=(-DLPKERNELS_SM90A)
  fi
done

objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
export objects
compile() { # source, then the compiler and its flags
  local source=$1
  shift
  "$@" "$source" -o "$objects/$(echo "$source" | tr / _).o" || exit 255
}
export -f compile
find csrc \( -name '*.cu' -o -name '*.cpp' \) ! -name build_info.cpp -print0 |
  xargs -0 -P "$(nproc)" -I {} bash -c 'compile "$@"' _ {} "$nvcc" "${flags[@]}" "${nvcc_flags[@]}"

# This torch has no libtorch_cuda to link: an empty library of that name makes the loader find the real one.
"${CXX:-g++}" -shared -x c++ /dev/null -o "$objects/libtorch_cuda.so" -Wl,-soname,libtorch_cuda.so
"$nvcc" -shared -cudart static -o "$out/_ops.abi3.so" "$objects"/*.o "-L$torch_lib" "-L$objects" \
  -Xlinker --no-as-needed -ltorch_cuda -ltorch -ltorch_cpu -lc10
echo "built $out/_ops.abi3.so for $architectures"
