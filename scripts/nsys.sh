#!/usr/bin/env bash
# A timeline for Nsight Systems, with the ranges of the NVTX domain "lpkernels".
#
#   scripts/nsys.sh                                   five frames of a model with random weights
#   scripts/nsys.sh python -m benchmarks frame        any other command
#   NSYS_OUT=name scripts/nsys.sh                     name of the report (default: lpkernels)
set -euo pipefail

command -v nsys >/dev/null || {
  echo "nsys is not on the PATH: install Nsight Systems, or use: lpkernels profile --tool torch" >&2
  exit 1
}
out=${NSYS_OUT:-lpkernels}
if [ $# -eq 0 ]; then
  set -- "${PYTHON:-python3}" -m lpkernels profile --tool none --random-weights 0 --frames 5
fi
nsys profile --trace=cuda,nvtx,cudnn,cublas --cuda-graph-trace=node --force-overwrite=true --output="$out" "$@"
nsys stats --report nvtx_sum,cuda_gpu_kern_sum "$out.nsys-rep" || echo "nsys stats failed: open $out.nsys-rep in nsys-ui" >&2
