#include "common/kernel_table.h"

#ifdef USE_CUDA
#include <cuda_runtime.h>
#endif

namespace lpkernels {

std::vector<KernelEntry>& kernel_table() {
  static std::vector<KernelEntry> table;  // a function's static: registration runs before main, in any order
  return table;
}

}  // namespace lpkernels

int lpkernels_kernel_count() {
  return static_cast<int>(lpkernels::kernel_table().size());
}

int lpkernels_kernel_attributes(int index, lpkernels::KernelAttributes* out) {
  const auto& table = lpkernels::kernel_table();
  if (index < 0 || index >= static_cast<int>(table.size()) || out == nullptr) {
    return 1;
  }
#ifdef USE_CUDA
  const auto& entry = table[index];
  cudaFuncAttributes attributes{};
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, entry.function); error != cudaSuccess) {
    return static_cast<int>(error);
  }
  if (const cudaError_t error = cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(entry.dynamic_shared_bytes));
      error != cudaSuccess) {
    return static_cast<int>(error);
  }
  int blocks = 0;
  if (const cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry.function, entry.threads,
                                                                              entry.dynamic_shared_bytes);
      error != cudaSuccess) {
    return static_cast<int>(error);
  }
  *out = {entry.name,
          entry.threads,
          attributes.numRegs,
          attributes.sharedSizeBytes,
          entry.dynamic_shared_bytes,
          attributes.localSizeBytes,
          blocks};
  return 0;
#else
  return 1;
#endif
}
