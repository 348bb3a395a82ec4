#!/usr/bin/env bash
# compute-sanitizer over the CUDA kernels: bad accesses, races, reads of memory that nothing wrote.
#
#   scripts/sanitize.sh                      memcheck, racecheck and initcheck over every kernel on small inputs
#   scripts/sanitize.sh racecheck            one of them
#   scripts/sanitize.sh memcheck tests/ops/test_flow_warp.py     over tests, on their own sizes
set -euo pipefail
cd "$(dirname "$0")/.."

command -v compute-sanitizer >/dev/null || {
  echo "compute-sanitizer is not on the PATH: it comes with the CUDA toolkit" >&2
  exit 1
}
tools=(memcheck racecheck initcheck)
if [ $# -ge 1 ]; then
  tools=("$1")
  shift
fi
python=${PYTHON:-python3}
if [ $# -ge 1 ]; then
  set -- "$python" -m pytest -q -m gpu -p no:cacheprovider -p no:xdist "$@"
else
  export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  set -- "$python" scripts/every_kernel.py
fi
# Without the caching allocator each tensor is an allocation of its own, so that its edges are seen.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
failed=0
for tool in "${tools[@]}"; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 5 --target-processes all "$@" ||
    { echo "$tool found errors" >&2; failed=1; }
done
exit "$failed"
