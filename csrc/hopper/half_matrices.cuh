// Matrices of 16 x 16 halves out of shared memory, as wgmma takes them from registers, and sums of their words.
#pragma once

#include <cstdint>

namespace lpkernels::hopper {

// The words of a warp's 16 pixels by 16 channels that a lane has.
using MatrixWords = uint32_t[4];

// Lane l gives the address of 8 channels, l / 16 of two, of pixel l % 16.
__device__ __forceinline__ void load_matrix(MatrixWords& to, uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}

__device__ __forceinline__ uint32_t sum_of_halves(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("add.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

__device__ __forceinline__ uint32_t difference_of_halves(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

}  // namespace lpkernels::hopper
