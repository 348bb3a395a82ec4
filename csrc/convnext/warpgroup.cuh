// The instructions of a warpgroup's product (wgmma, sm_90a), beside those in device.cuh: both factors come from shared
// memory, the sums stay in registers, and the tensor cores work while the threads go on.
#pragma once

#include <utility>

#include "convnext/device.cuh"
#include "hopper/products.cuh"

namespace lpkernels::convnext {

constexpr int kWarpgroup = 128;  // threads

// A value that all lanes of the warp have, where the compiler does not see it.
__device__ inline int uniform(int value) {
  return __shfl_sync(~0u, value, 0);
}

// Where rows of 16 k lie, for the tensor cores: the two halves of a matrix descriptor.
struct Operand {
  static constexpr uint32_t kOwnBytes = (1 << 18) - 1;  // above them an address has the block's rank in its cluster

  uint32_t place, shape;

  __device__ Operand(const void* first, int bytes_to_next_8_k, int bytes_to_next_8_rows, cute::GMMA::LayoutType layout)
      : place((shared_address(first) & kOwnBytes) / 16 | bytes_to_next_8_k / 16 << 16),
        shape(bytes_to_next_8_rows / 16 | static_cast<uint32_t>(layout) << 30) {}

  // So many 16 bytes further.
  __device__ Operand at(int vectors) const {
    Operand moved = *this;
    moved.place += vectors;
    return moved;
  }
  __device__ uint64_t descriptor() const { return uint64_t{shape} << 32 | place; }
};

// Of a box (load_box): rows of 64 k, of which `first` is one of the four 16 of the first row of eight.
__device__ inline Operand operand_in_box(const void* first) {
  return {first, 16, 1024, cute::GMMA::LayoutType::B128};  // the next 8 k are where the swizzle has them
}

// Of vectors[k / 8][row], 8 k each.
__device__ inline Operand operand_of_vectors(const void* first, int rows) {
  return {first, 16 * rows, 128, cute::GMMA::LayoutType::INTERLEAVE};
}

// Of vectors[row / 8][k], 8 rows each, of so many k.
__device__ inline Operand operand_of_columns(const void* first, int depth) {
  return {first, 128, 16 * depth, cute::GMMA::LayoutType::INTERLEAVE};
}

// Before the first product: registers are as the threads have left them.
__device__ inline void begin_products() {
  cute::warpgroup_arrive();
}

// sums (+)= a b^T, 64 rows of a by N of b, by a whole warpgroup; Columns: b is operand_of_columns. Lane 4 g + t of warp
// w gets the rows 16 w + g and 8 further, of every eight columns 2t and 2t + 1: [columns / 8][row][column].
template <int N, bool Columns>
__device__ inline void add_product(float (&sums)[N / 2], Operand a, Operand b, bool first) {
  using Half = cute::half_t;
  using Shape = cute::Shape<cute::_64, cute::Int<N>, cute::_16>;
  constexpr auto kOrder = Columns ? cute::GMMA::Major::MN : cute::GMMA::Major::K;
  using Mma = decltype(cute::GMMA::ss_op_selector<Half, Half, float, Shape, cute::GMMA::Major::K, kOrder>());
  [&]<size_t... i>(std::index_sequence<i...>) {
    Mma::fma(a.descriptor(), b.descriptor(), sums[i]...,
             first ? cute::GMMA::ScaleOut::Zero : cute::GMMA::ScaleOut::One);
  }(std::make_index_sequence<N / 2>{});
}

// Waits for all of them: the sums are there, and what was multiplied may be overwritten.
template <int Count>
__device__ inline void finish_products(float (&sums)[Count]) {
  cute::warpgroup_commit_batch();
  cute::warpgroup_wait<0>();
#pragma unroll
  for (float& sum : sums) {
    cute::warpgroup_fence_operand(sum);  // no earlier use of it
  }
}

}  // namespace lpkernels::convnext
