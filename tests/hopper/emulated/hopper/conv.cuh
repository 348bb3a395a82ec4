// What csrc/hopper/conv.cuh gives its kernels' parts, without a GPU.
#pragma once

#include "hopper/products.cuh"

#include "common/stable.h"
#include "hopper/block_memory.cuh"
#include "hopper/work.cuh"

// The launch of statistics.cuh's own kernel compiles, and does nothing.
#undef gridDim  // a field of theirs
#define __shared__ static
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum { cudaLaunchAttributeProgrammaticStreamSerialization };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchAttribute {
  int id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  int numAttrs;
};
template <class... Arguments>
cudaError_t cudaLaunchKernelEx(Arguments&&...) {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) {
  return "";
}

namespace lpkernels {

inline void wait_for_kernel_before() {}
inline void let_next_kernel_start() {}

namespace hopper {

template <class Config, int Kinds>
struct ClusterSums;

}  // namespace hopper
}  // namespace lpkernels
