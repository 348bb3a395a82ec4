#include "common/kernel_table.h"

#ifdef USE_CUDA
#include <cuda_runtime.h>
#endif

namespace lpkernels {

std::vector<KernelEntry>& kernel_table() {
  static std::vector<KernelEntry> table;  // a function's static: registration runs before main, in any order
  return table;
}

#ifdef USE_CUDA
namespace {

// What the driver makes of a kernel, which a GPU that it is not made for cannot say.
cudaError_t examine(const KernelEntry& entry, KernelAttributes* out) {
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, entry.function);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(entry.dynamic_shared_bytes));
  }
  int blocks = 0;
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, entry.function, entry.threads,
                                                          entry.dynamic_shared_bytes);
  }
  if (error == cudaSuccess) {
    out->threads = entry.threads;
    out->registers = attributes.numRegs;
    out->static_shared_bytes = attributes.sharedSizeBytes;
    out->dynamic_shared_bytes = entry.dynamic_shared_bytes;
    out->local_bytes = attributes.localSizeBytes;
    out->blocks_per_multiprocessor = blocks;
  }
  return error;
}

}  // namespace
#endif

}  // namespace lpkernels

int lpkernels_kernel_count() {
  return static_cast<int>(lpkernels::kernel_table().size());
}

int lpkernels_kernel_attributes(int index, lpkernels::KernelAttributes* out) {
  const auto& table = lpkernels::kernel_table();
  if (index < 0 || index >= static_cast<int>(table.size()) || out == nullptr) {
    return 1;
  }
  *out = {};
  out->name = table[index].name;
#ifdef USE_CUDA
  if (const cudaError_t error = lpkernels::examine(table[index], out); error != cudaSuccess) {
    out->error = cudaGetErrorString(error);
    cudaGetLastError();  // the next launch is not to blame
  }
#endif
  return 0;
}
