#!/usr/bin/env bash
# compute-sanitizer over the op tests: bad accesses, races, reads of memory that nothing wrote.
#
#   scripts/sanitize.sh                      memcheck, racecheck and initcheck over tests/ops
#   scripts/sanitize.sh memcheck tests/ops/test_flow_warp.py
set -euo pipefail

command -v compute-sanitizer >/dev/null || {
  echo "compute-sanitizer is not on the PATH: it comes with the CUDA toolkit" >&2
  exit 1
}
tools=(memcheck racecheck initcheck)
if [ $# -ge 1 ]; then
  tools=("$1")
  shift
fi
[ $# -ge 1 ] || set -- tests/ops
# Without the caching allocator each tensor is an allocation of its own, so that its edges are seen.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
failed=0
for tool in "${tools[@]}"; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 5 --target-processes all \
    "${PYTHON:-python3}" -m pytest -q -m gpu -p no:cacheprovider -p no:xdist "$@" || { echo "$tool found errors" >&2; failed=1; }
done
exit "$failed"
