// A list of the CUDA kernels in the op library, so that `lpkernels doctor` can print what the compiler and the device
// make of each: registers, shared memory, occupancy. The CPU build exports an empty list.
#pragma once

#include <cstddef>
#include <vector>

#if defined(_WIN32)
#define LPKERNELS_EXPORT extern "C" __declspec(dllexport)
#else
#define LPKERNELS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace lpkernels {

struct KernelEntry {
  const char* name;
  const void* function;
  int threads;  // per block, as launched
  size_t dynamic_shared_bytes;
};

struct KernelAttributes {
  const char* name;
  const char* error;  // why the current device cannot run it, or null; all below is zero then
  int threads;
  int registers;
  size_t static_shared_bytes;
  size_t dynamic_shared_bytes;
  size_t local_bytes;
  int blocks_per_multiprocessor;
};

std::vector<KernelEntry>& kernel_table();

struct RegisterKernel {
  explicit RegisterKernel(KernelEntry entry) { kernel_table().push_back(entry); }
};

}  // namespace lpkernels

// Number of kernels; and attributes of kernel `index` on the current device: 0, or 1 if there is no such kernel.
LPKERNELS_EXPORT int lpkernels_kernel_count();
LPKERNELS_EXPORT int lpkernels_kernel_attributes(int index, lpkernels::KernelAttributes* out);
