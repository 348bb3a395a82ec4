// What grn_linear and norm_downsample do alike: 32 rows of A times 96 columns, K in pieces of 384 of which each block
// of a cluster has one, and sums that the cluster adds up through distributed shared memory, in order.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

using SplitProduct = HeldProduct</*GroupsM=*/1, /*GroupsK=*/4, /*Held=*/1>;

// Where a block's shared memory has what: at 0 a, and in its and the weights' place the sums of the groups of warps.
struct SplitMemory {
  using Product = SplitProduct;

  // Elements between the rows of a: an odd multiple of 16 bytes, so that eight rows lie in different banks.
  static constexpr int kPitch = Product::kDepth + 8;
  static constexpr size_t kWeights = sizeof(__half) * Product::kRows * kPitch;
  static constexpr size_t kBias = kWeights + Product::kWeightBytes > Product::kStagedBytes
                                      ? kWeights + Product::kWeightBytes
                                      : Product::kStagedBytes;
  static constexpr size_t kEnd = kBias + sizeof(float) * Product::kColumns;
  static constexpr size_t kReceivedBytes = sizeof(float) * Product::kRows * Product::kPitch;
};

// The product with a as SplitMemory has it.
__device__ inline void multiply(SplitProduct& product, const __half* a, const uint4* weights) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const __half* own = a + lane % 16 * SplitMemory::kPitch + SplitProduct::first_k() + lane / 16 * 8;
  product.multiply(
      weights, [&](int m, int i) { return own + SplitProduct::row(m) * SplitMemory::kPitch + 16 * i; },
      [](int, int, const uint32_t (&)[4]) {});
}

// Asks for the bias of a block's columns, zeros beyond `outputs`.
__device__ inline void copy_bias(const float* from, int first_n, int outputs, float* bias) {
  if (threadIdx.x < SplitProduct::kQuads) {
    const int n = 4 * static_cast<int>(threadIdx.x);
    copy_async(bias + n, from + first_n + n, first_n + n < outputs);
  }
}

// Each block adds up the sums of its own 32 / splits rows, four columns a thread.
struct SplitSums {
  using Product = SplitProduct;

  int splits, part, rows, slice, column;  // rows: of this block

  __device__ SplitSums(int splits, int part)
      : splits(splits),
        part(part),
        rows(share_of(Product::kRows, splits)),
        slice(static_cast<int>(threadIdx.x / Product::kQuads)),
        column(static_cast<int>(threadIdx.x % Product::kQuads) * 4) {}

  __device__ static void expect(uint64_t* arrivals) {
    init_arrivals(arrivals);
    expect_bytes(arrivals, static_cast<int>(sizeof(float)) * Product::kRows * Product::kColumns);
  }

  // Calls finish(row of this block's, sums of the four columns). base: rank of the first part; received: [part][row of
  // its own][column].
  template <class Finish>
  __device__ void add_up(const float* staged, int base, float* received, uint64_t* arrivals, Finish&& finish) const {
    if (slice < Product::kSlices) {
#pragma unroll
      for (int i = 0; i < Product::kRows / Product::kSlices; ++i) {
        const int row = slice + i * Product::kSlices;
        const float4 sum = Product::staged_sum(staged, row, column);
        if (splits == 1) {
          finish(row, sum);
        } else {
          float* place = received + (part * rows + (row & (rows - 1))) * Product::kPitch + column;
          send(reinterpret_cast<float4*>(place), sum, base + row * splits / Product::kRows, arrivals);
        }
      }
    }
    if (splits == 1) {
      return;
    }
    wait_for_bytes(arrivals);
    if (slice < rows) {  // two parts or more: as many slices as rows
      const float* own = received + slice * Product::kPitch + column;
      float4 sum = *reinterpret_cast<const float4*>(own);
#pragma unroll 1
      for (int i = 1; i < splits; ++i) {
        sum = sum + *reinterpret_cast<const float4*>(own + i * rows * Product::kPitch);
      }
      finish(slice, sum);
    }
  }
};

}  // namespace lpkernels::convnext
