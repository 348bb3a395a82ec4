// Programmatic dependent launch (Hopper and later): a kernel starts while the one before it drains, and touches what
// that one reads or writes only after `wait_for_kernel_before`. The compiler may load through a `const T* __restrict__`
// before that: such a pointer goes through `after_the_wait`.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "common/cuda.h"

namespace lpkernels {

__device__ inline void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// For who has waited.
template <class T>
__device__ T* after_the_wait(T* address) {
  asm volatile("" : "+l"(address));
  return address;
}

__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// How many clusters of `cluster` blocks the current GPU holds at once: fewer than multiprocessors over the size, for a
// cluster lies in one of the chip's groups of multiprocessors, whose sizes differ from chip to chip. Lets the kernel
// have its shared memory.
template <class Kernel>
cudaError_t clusters_at_once(Kernel* kernel, int threads, int shared_bytes, int cluster, int* count) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(cluster);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  return error == cudaSuccess ? cudaOccupancyMaxActiveClusters(count, kernel, &config) : error;
}

// Whether the current GPU holds `blocks` of them at once, and launches them so.
template <class Kernel>
bool holds_all(Kernel* kernel, int threads, int shared_bytes, int cluster, int64_t blocks) {
  int device = 0, cooperative = 0, clusters = 0;
  cudaGetDevice(&device);
  const bool known = cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) == cudaSuccess &&
                     clusters_at_once(kernel, threads, shared_bytes, cluster, &clusters) == cudaSuccess;
  if (!known) {
    cudaGetLastError();  // such a GPU takes the other way
  }
  return known && cooperative == 1 && blocks <= int64_t{clusters} * cluster;
}

// Whether the current GPU lets kernels start early.
inline bool starts_early() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 9;
}

// Launches `kernel` so that it may start early, on any GPU.
template <class... Parameters>
void launch_early(const char* op, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                  cudaStream_t stream, std::type_identity_t<Parameters>... parameters) {
  constexpr size_t kUnasked = 48 << 10;
  if (shared_bytes > kUnasked) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = starts_early() ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, parameters...);
  check_launch(op);
}

// The same, in clusters of `cluster` neighbouring blocks of the grid's x; if Cooperative, with all of its blocks on the
// GPU at once. Raises on GPUs without clusters: there such a kernel has no body.
template <bool Cooperative = false, class... Parameters>
void launch_clusters(const char* op, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                     int cluster, cudaStream_t stream, Parameters... parameters) {
  int device = 0, clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  STD_TORCH_CHECK(clusters == 1, op, ": needs a GPU with thread-block clusters");
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  cudaLaunchAttribute attributes[3];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  attributes[2].id = cudaLaunchAttributeCooperative;
  attributes[2].val.cooperative = 1;
  config.numAttrs = Cooperative ? 3 : 2;
  cudaLaunchKernelEx(&config, kernel, parameters...);
  check_launch(op);
}

}  // namespace lpkernels
