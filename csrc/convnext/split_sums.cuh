// What grn_linear and norm_downsample do alike: 32 rows of A times some columns, K in pieces of 384 of which each block
// of a cluster has one, and sums that the cluster adds up through distributed shared memory, in order.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

using NarrowSplit = HeldProduct</*GroupsM=*/1, /*GroupsK=*/4, /*Held=*/1>;

// Where a block's shared memory has what: at 0 a, and in its and the weights' place the sums of the groups of warps.
template <class P>
struct SplitMemory {
  using Product = P;

  // Elements between the rows of a: an odd multiple of 16 bytes, so that eight rows lie in different banks.
  static constexpr int kPitch = Product::kDepth + 8;
  static constexpr size_t kWeights = sizeof(__half) * Product::kRows * kPitch;
  static constexpr size_t kOperands = kWeights + Product::kWeightBytes;
  static constexpr size_t kBias = kOperands > Product::kStagedBytes ? kOperands : Product::kStagedBytes;
  static constexpr size_t kEnd = kBias + sizeof(float) * Product::kColumns;
  static constexpr size_t kReceivedBytes = sizeof(float) * Product::kRows * Product::kPitch;
};

// The product with a as SplitMemory has it.
template <class Product>
__device__ void multiply(Product& product, const __half* a, const uint4* weights) {
  constexpr int kPitch = SplitMemory<Product>::kPitch;
  const int lane = product.lane();
  const __half* own = a + lane % 16 * kPitch + product.first_k() + lane / 16 * 8;
  product.multiply(
      weights, [&](int m, int i) { return own + product.row(m) * kPitch + 16 * i; },
      [](int, int, const uint32_t (&)[4]) {});
}

// Asks for the bias of a block's columns, zeros beyond `outputs`.
template <class Product>
__device__ void copy_bias(const float* from, int first_n, int outputs, int thread, float* bias) {
  if (thread < Product::kQuads) {
    const int n = 4 * thread;
    copy_async(bias + n, from + first_n + n, first_n + n < outputs);
  }
}

// Each block adds up the sums of its own kRows / splits rows, four columns a thread.
template <class Product>
struct SplitSums {
  static_assert(Product::kRows % Product::kSlices == 0 && Product::kRows <= 2 * Product::kSlices);
  int splits, part, rows, slice, column;  // rows: of this block

  __device__ SplitSums(int splits, int part, int thread)
      : splits(splits),
        part(part),
        rows(share_of(Product::kRows, splits)),
        slice(thread / Product::kQuads),
        column(thread % Product::kQuads * 4) {}

  __device__ static void expect(uint64_t* arrivals) {
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
    wait_for_bytes(arrivals, 0);
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
