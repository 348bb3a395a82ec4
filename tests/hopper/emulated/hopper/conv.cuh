// What csrc/hopper/conv.cuh gives its kernels' parts, without a GPU.
#pragma once

#include "hopper/products.cuh"

#include "common/stable.h"
#include "hopper/block_memory.cuh"
#include "hopper/work.cuh"

// The launch of statistics.cuh's own kernel compiles, and does nothing.
#define __shared__ static
using cudaStream_t = void*;
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace lpkernels {

inline void wait_for_kernel_before() {}
inline void let_next_kernel_start() {}
template <class... Arguments>
void launch_early(Arguments&&...) {}

namespace hopper {

template <class Config, int Kinds>
struct ClusterSums;

}  // namespace hopper
}  // namespace lpkernels
