#!/usr/bin/env bash
# Compiles every CUDA source for an old, a middle and the Hopper architecture; links and keeps nothing, needs no GPU.
# Usage: scripts/check_cuda.sh [PYTHON]   (a Python that has torch and nvidia-cutlass; default: python)
set -euo pipefail
python=$(command -v "${1:-python}")
cd "$(dirname "$0")/.."

# As the build does: nvcc of CUDA_HOME, or the one on PATH.
nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
if ! command -v "$nvcc" >/dev/null; then
  echo "cuda-check: skipped, no nvcc (install the CUDA toolkit, or set CUDA_HOME)"
  exit 0
fi

objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
mapfile -t includes < <("$python" -c '
import cutlass_library, pathlib
from torch.utils.cpp_extension import include_paths
print("\n".join([*include_paths(), str(pathlib.Path(cutlass_library.__file__).parent / "source/include")]))')
target=$(sed -n 's/^TORCH_TARGET = "\(.*\)".*/\1/p' setup.py)
: "${target:?no TORCH_TARGET in setup.py}"
flags=(-c -std=c++20 -O1 --expt-relaxed-constexpr -Werror all-warnings -DUSE_CUDA -DLPKERNELS_SM90A "-DTORCH_TARGET_VERSION=$target" -Icsrc)
for path in "${includes[@]}"; do
  flags+=(-isystem "$path")
done
for arch in 75 80 90a; do
  flags+=(-gencode "arch=compute_$arch,code=sm_$arch")
done

export objects
compile() { # source, then nvcc and its flags
  local source=$1
  shift
  echo "cuda-check: $source (sm_75 sm_80 sm_90a)"
  "$@" "$source" -o "$objects/${source//\//_}.o" || exit 255 # ends xargs
}
export -f compile
# The largest first, so that no core is left with one of them at the end.
find csrc -name '*.cu' -printf '%s %p\n' | sort -rn | cut -d' ' -f2 |
  xargs -P "$(nproc)" -I {} bash -c 'compile "$@"' _ {} "$nvcc" "${flags[@]}"
echo "cuda-check: $(find csrc -name '*.cu' | wc -l) CUDA sources compile with $("$nvcc" --version | grep -o 'release [0-9.]*')"
