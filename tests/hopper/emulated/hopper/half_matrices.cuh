// csrc/hopper/half_matrices.cuh without a GPU: a warp's lanes tell each other where their rows of a matrix lie.
#pragma once

#include "convnext/emulator.h"

namespace lpkernels::hopper {

using MatrixWords = uint32_t[4];

inline void load_matrix(MatrixWords& to, uint32_t from) {
  if (from % 16 != 0) {
    emulated::fail("load_matrix: not aligned");
  }
  const auto* lanes = emulated::exchange({from});
  const auto* memory = reinterpret_cast<const char*>(emulated::current->block->memory.data());
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    std::memcpy(to + i, memory + lanes[8 * i + lane / 4][0] + lane % 4 * 4, sizeof(to[i]));
  }
}

template <class Operation>
uint32_t of_halves(uint32_t a, uint32_t b, Operation operation) {
  const __half2 halves{operation(emulated::half_of(a, 0), emulated::half_of(b, 0)),
                       operation(emulated::half_of(a, 1), emulated::half_of(b, 1))};
  uint32_t word;
  std::memcpy(&word, &halves, sizeof(word));
  return word;
}

inline uint32_t sum_of_halves(uint32_t a, uint32_t b) {
  return of_halves(a, b, [](__half x, __half y) { return static_cast<__half>(x + y); });
}

inline uint32_t difference_of_halves(uint32_t a, uint32_t b) {
  return of_halves(a, b, [](__half x, __half y) { return static_cast<__half>(x - y); });
}

}  // namespace lpkernels::hopper
