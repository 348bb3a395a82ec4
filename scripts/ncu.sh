#!/usr/bin/env bash
# One kernel in Nsight Compute: speed of light, roofline, memory and occupancy.
#
#   scripts/ncu.sh KERNEL                             kernels whose name matches the regular expression, op benchmarks
#   scripts/ncu.sh KERNEL python -m lpkernels bench replay captured
#   NCU_OUT=name NCU_COUNT=3 scripts/ncu.sh KERNEL    name of the report, launches to record
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: scripts/ncu.sh KERNEL [COMMAND...]" >&2; exit 2; }
command -v ncu >/dev/null || { echo "ncu is not on the PATH: install Nsight Compute" >&2; exit 1; }
kernel=$1
out=${NCU_OUT:-lpkernels-kernel}
shift
if [ $# -eq 0 ]; then
  set -- "${PYTHON:-python3}" -m lpkernels bench ops --providers 'lpkernels-*' --seconds 0.2 --json "$(mktemp -d)/records.json"
fi
# The card keeps its clocks: figures are comparable with the benchmarks', not with a locked card's.
ncu --set roofline --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
  --clock-control none --target-processes all --kernel-name "regex:$kernel" --launch-skip 5 \
  --launch-count "${NCU_COUNT:-3}" --force-overwrite --export "$out" "$@"
ncu --import "$out.ncu-rep" --page details
