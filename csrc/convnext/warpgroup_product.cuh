// The matrix product of convnext_stage on Hopper: C[m, n] = sum over k A[m, k] W[n, k] in half precision, sums in
// float, both factors in shared memory.
//
// Transposed, for wgmma takes 64 rows and the pixels may be 32: a warpgroup owns 64 columns of C, rows of W to wgmma,
// by all rows of A and all k, so that no parts of a sum are to be added up. W is in boxes of 64 k (load_box), A in
// boxes or in vectors of eight k by row. One to three of the four warpgroups multiply; the others sum up the rows of A
// meanwhile, where their norm is wanted. Bound by shared memory, 128 bytes a clock: 16 k take 2 KB of W and 32 bytes a
// row of A, so that 64 columns by 64 rows by 384 k are 768 clocks, as many as the tensor cores take, and 64 by 32 by
// 384 are 576.
#pragma once

#include "convnext/depthwise_exchange.cuh"
#include "convnext/split_sums.cuh"
#include "convnext/warpgroup.cuh"

namespace lpkernels::convnext {

template <int Rows, int Columns, int Depth>
struct WarpgroupProduct {
  static constexpr int kRows = Rows, kColumns = Columns, kDepth = Depth;      // of a block; the most k
  static constexpr int kTile = 64;                                            // columns of a warpgroup
  static constexpr int kMultiplying = ceil_div(Columns, kTile) * kWarpgroup;  // threads, the first of the block
  static constexpr int kStep = 16;                                            // k of an instruction
  static constexpr int kSteps = Depth / kStep;
  static constexpr bool kBoxed = true;
  static constexpr int kBoxes = ceil_div(Depth, kBoxDepth);
  static constexpr int kBoxBytes = 2 * Columns * kBoxDepth;
  static constexpr int kWeightBytes = kBoxes * kBoxBytes;
  static constexpr int kWeightSumsBytes = 16 * kStep;  // eight rows of ones
  static constexpr int kPitch = Columns + 4;  // floats between rows of sums: a warp's 4 x 8 lie in different banks
  static constexpr size_t kStagedBytes = sizeof(float) * Rows * kPitch;
  static constexpr int kQuads = Columns / 4;
  static constexpr int kSlices = std::bit_floor(static_cast<unsigned>(kThreads / kQuads));
  static_assert(kMultiplying < kThreads && Rows % 8 == 0 && Depth % kStep == 0);

  int thread;
  float sums[Rows / 2] = {};  // of all threads, or registers would be kept for them throughout a loop

  __device__ explicit WarpgroupProduct(int thread) : thread(thread) {}

  // Where the i-th 16 k of boxes of so many rows begin, in vectors of 8.
  LPKERNELS_HOST_DEVICE static constexpr int place_in_boxes(int i, int rows) {
    constexpr int kSteps = kBoxDepth / kStep;
    return i / kSteps * rows * (kBoxDepth / 8) + i % kSteps * (kStep / 8);
  }

  __device__ bool multiplies() const { return thread < kMultiplying; }
  // The first of this thread's two columns, the other is 8 further.
  __device__ int column() const { return thread / 32 * 16 + thread % 32 / 4; }

  // sums = W A^T of the warpgroup's columns. rows(i): where the i-th 16 k of A's rows lie, two for each sum of a
  // thread. Where the last 64 columns are not all there, what lies behind a box gives sums that nobody asks for.
  template <int Count, class Operands>
  __device__ void multiply(const uint4* weights, float (&sums)[Count], Operands&& rows) const {
    const int warpgroup = kMultiplying > kWarpgroup ? uniform(thread / kWarpgroup) : 0;
    const Operand own = operand_in_box(weights + warpgroup * (kTile * kBoxDepth / 8));
    begin_products();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      add_product<2 * Count>(sums, own.at(place_in_boxes(i, kColumns)), rows(i), i == 0);
    }
    finish_products(sums);
  }

  // The sums as staged[row][column], from where any thread may take them after a barrier.
  __device__ void stage(float* staged) const {
    if (thread / 32 * 16 >= kColumns) {
      return;
    }
    float* own = staged + thread % 4 * 2 * kPitch + column();
#pragma unroll
    for (int i = 0; i < Rows / 2; ++i) {
      own[(i / 4 * 8 + i % 2) * kPitch + i / 2 % 2 * 8] = sums[i];
    }
  }

  __device__ static float4 staged_sum(const float* staged, int row, int column) {
    return *reinterpret_cast<const float4*>(staged + row * kPitch + column);
  }
};

// With a as SplitMemory has it.
template <int Rows, int Columns, int Depth>
__device__ void multiply(WarpgroupProduct<Rows, Columns, Depth>& product, const __half* a, const uint4* weights) {
  if (product.multiplies()) {
    const Operand boxes = operand_in_box(a);
    product.multiply(weights, product.sums, [&](int i) { return boxes.at(product.place_in_boxes(i, Rows)); });
  }
}

// totals[column]: sums of the rows of W, as products with ones.
template <int Rows, int Columns, int Depth>
__device__ void add_up_weights(const WarpgroupProduct<Rows, Columns, Depth>& product, const uint4* weights, float* ones,
                               float* totals) {
  static_assert(Columns % product.kTile == 0);
  if (product.thread < product.kWeightSumsBytes / 16) {
    reinterpret_cast<uint4*>(ones)[product.thread] = make_uint4(kOnes, kOnes, kOnes, kOnes);
  }
  publish_to_copies();
  __syncthreads();
  if (product.multiplies()) {
    float sums[4] = {};
    const Operand rows = operand_of_vectors(ones, 8);
    product.multiply(weights, sums, [&](int) { return rows; });
    if (product.thread % 4 == 0) {
      totals[product.column()] = sums[0];
      totals[product.column() + 8] = sums[2];
    }
  }
}

// Sums of v and of its squares over a part of the channels, by the threads that do not multiply: one pixel each, and
// in any order of the chunks.
template <int Rows, int Columns, int Depth>
struct PixelSums<WarpgroupProduct<Rows, Columns, Depth>> {
  using Product = WarpgroupProduct<Rows, Columns, Depth>;
  static constexpr int kParts = (kThreads - Product::kMultiplying) / Rows;  // of the channels
  static constexpr int kVectors = Depth / 8 / kParts;
  static_assert(8 * kParts * kVectors == Depth);

  int own;  // among these threads
  float2 total = make_float2(0.f, 0.f);

  __device__ explicit PixelSums(const Product& product) : own(product.thread - Product::kMultiplying) {}

  __device__ void add_up(const __half* a) {
    const auto* vectors = reinterpret_cast<const uint4*>(a) + own / Rows * kVectors * Rows + own % Rows;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const uint4 v = vectors[i * Rows];
      for (const uint32_t pair : {v.x, v.y, v.z, v.w}) {
        const float2 x = floats(pair);
        total.x += x.x + x.y;
        total.y = fmaf(x.x, x.x, fmaf(x.y, x.y, total.y));
      }
    }
  }

  // parts[part][pixel]
  __device__ void store(float2* parts) const {
    if (own >= 0) {
      parts[own] = total;
    }
  }
};

// sums = v W^T, and the sums of v.
template <class Memory, int Rows, int Columns, int Depth>
__device__ void multiply(WarpgroupProduct<Rows, Columns, Depth>& product, const Chunks& chunks, int own,
                         const __half* a, const uint4* weights,
                         PixelSums<WarpgroupProduct<Rows, Columns, Depth>>& pixel_sums) {
  constexpr int kSteps = kChunk / product.kStep;
  if (product.multiplies()) {
    const Operand vectors = operand_of_vectors(a, Rows);
    product.multiply(weights, product.sums, [&](int i) {
      return vectors.at(Memory::place_of(chunks, i / kSteps, own) * (Memory::kChunkSize / 8) + i % kSteps * 2 * Rows);
    });
  } else {
    pixel_sums.add_up(a);
  }
}

}  // namespace lpkernels::convnext
