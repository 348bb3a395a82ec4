// Values of any float type packed into words, and vectors of words, for the samplers' device code.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/stable.h"

namespace lpkernels {

// As many values as fill 32 bits, rounded to T.
template <class T>
__device__ __forceinline__ uint32_t word_of(const float* values) {
  uint32_t word;
  if constexpr (std::is_same_v<T, torch::headeronly::Half>) {
    const __half2 rounded = __floats2half2_rn(values[0], values[1]);  // one instruction
    memcpy(&word, &rounded, sizeof(word));
  } else {
    constexpr int kValues = 4 / sizeof(T);
    T rounded[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      rounded[i] = static_cast<T>(values[i]);
    }
    memcpy(&word, rounded, sizeof(word));
  }
  return word;
}

// One store of 16 bytes to global memory, aligned to 16; the compiler makes four of an assignment of uint4 here.
__device__ __forceinline__ void store_words(void* to, const uint32_t words[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

}  // namespace lpkernels
