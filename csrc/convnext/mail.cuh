// Numbers that the thread blocks of a kernel hand each other through global memory without a barrier: a word tells by
// its value whether it has arrived.
//
// All words of the mail are absent at first, that is, all of their bits are set. No sum, product or rounding gives such
// a number: those that are no number have one form, 0x7fffffff, in half precision 0x7fff. So who wants a word loads it
// until it is there, no fence orders it with others, and a hand-over takes what its way to the L2 and back takes. A
// barrier of the grid would add the wait for the last store, a counter, and the load behind it: 2,600 clocks.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

constexpr uint32_t kAbsent = ~0u;
constexpr int kMailSlots = 3;  // a block of the network takes every third

// What one block of the network hands over, in bytes from its slot on; of all images.
struct Mail {
  unsigned char* first;
  int x;        // (B, H, W, C) half: the answer of the block of the network before
  int v;        // (B, tiles, C / 8, pixels of a tile, 8) half
  int h;        // (B, strips, N, 8) half
  int squares;  // (B, tiles, N) float
  int norms;    // (B, N) float
  int slot_bytes;

  __device__ unsigned char* slot(int block) const { return first + block % kMailSlots * slot_bytes; }
  template <class T>
  __device__ T* at(int block, int offset) const {
    return reinterpret_cast<T*>(first + (block % kMailSlots * slot_bytes + offset));
  }
};

__device__ inline bool is_there(uint4 v) {
  return max(max(v.x, v.y), max(v.z, v.w)) != kAbsent;
}
__device__ inline bool is_there(uint32_t v) {
  return v != kAbsent;
}

// What is to come if it exists, else zeros.
__device__ inline uint32_t absent_word_if(bool exists) {
  return exists ? kAbsent : 0;
}
__device__ inline uint4 absent_if(bool exists) {
  const uint32_t word = absent_word_if(exists);
  return make_uint4(word, word, word, word);
}

// Loads those of the values that are absent, once.
template <class Words, int N, class From>
__device__ void load_absent(Words (&values)[N], From&& from) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (!is_there(values[i])) {
      values[i] = load_words(from(i));
    }
  }
}

// Until all of them are there, of all lanes of a warp: lanes that went on alone would hold up those that wait.
template <class Words, int N, class From>
__device__ void receive(Words (&values)[N], From&& from) {
  const auto complete = [&] {
    bool all = true;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      all = all && is_there(values[i]);
    }
    return all;
  };
#pragma unroll 1
  while (!__all_sync(~0u, complete())) {
    load_absent(values, from);
  }
}

__device__ inline float4 floats_of(uint4 v) {
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
__device__ inline uint4 words_of(float4 v) {
  return make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w));
}

}  // namespace lpkernels::convnext
