// The matrix product of convnext_stage on Hopper: C[m, n] = sum over k A[m, k] W[n, k] in half precision, sums in
// float, both factors in shared memory.
//
// Transposed, for wgmma takes 64 rows and the pixels may be 32: a warpgroup owns 64 columns of C, rows of W to wgmma,
// by all rows of A and all k, so that no parts of a sum are to be added up. W is in boxes of 64 k (load_box), A in
// boxes or in vectors of eight k by row. One to three of the four warpgroups multiply. Bound by shared memory, 128
// bytes a clock: 16 k take 2 KB of W and 32 bytes a row of A, so that 64 columns by 64 rows by 384 k are 768 clocks, as
// many as the tensor cores take, and 64 by 32 by 384 are 576.
#pragma once

#include <bit>

#include "convnext/product.cuh"
#include "convnext/warpgroup.cuh"

namespace lpkernels::convnext {

constexpr int kBoxDepth = 64;  // k of W's boxes (load_box)

template <int Rows, int Columns, int Depth>
struct WarpgroupProduct {
  static constexpr int kRows = Rows, kColumns = Columns, kDepth = Depth;      // of a block; the most k
  static constexpr int kTile = 64;                                            // columns of a warpgroup
  static constexpr int kMultiplying = ceil_div(Columns, kTile) * kWarpgroup;  // threads, the first of the block
  static constexpr int kStep = 16;                                            // k of an instruction
  static constexpr int kSteps = Depth / kStep;
  static constexpr int kBoxes = ceil_div(Depth, kBoxDepth);
  static constexpr int kBoxBytes = 2 * Columns * kBoxDepth;
  static constexpr int kWeightBytes = kBoxes * kBoxBytes;
  static constexpr int kPitch = Columns + 4;  // floats between rows of sums: a warp's 4 x 8 lie in different banks
  static constexpr size_t kStagedBytes = sizeof(float) * Rows * kPitch;
  static constexpr int kQuads = Columns / 4;
  static constexpr int kSlices = std::bit_floor(static_cast<unsigned>(kThreads / kQuads));
  static_assert(kMultiplying < kThreads && Rows % 8 == 0 && Depth % kStep == 0);

  int thread;
  float sums[Rows / 2] = {};  // of all threads, or registers would be kept for them throughout a loop

  __device__ explicit WarpgroupProduct(int thread) : thread(thread) {}

  // The vector of 8 k from `k` on of a row in boxes of so many rows, in vectors; as swizzled as W's.
  __device__ static int place_in_boxes(int row, int k, int rows) {
    const int vector = k / 8;
    return (vector / 8 * rows + row) * (kBoxDepth / 8) + (vector ^ row) % 8;
  }
  // Where the i-th 16 k of them begin.
  LPKERNELS_HOST_DEVICE static constexpr int step_in_boxes(int i, int rows) {
    constexpr int kSteps = kBoxDepth / kStep;
    return i / kSteps * rows * (kBoxDepth / 8) + i % kSteps * (kStep / 8);
  }

  __device__ bool multiplies() const { return thread < kMultiplying; }
  // The 64 columns of this thread's warpgroup, among those that multiply.
  __device__ int tile() const { return kMultiplying > kWarpgroup ? uniform(thread / kWarpgroup) : 0; }
  // In a tile, the first of this thread's two columns; the other is 8 further.
  __device__ int column() const { return thread % kWarpgroup / 32 * 16 + thread % 32 / 4; }

  // sums = W A^T of a tile's columns, by a warpgroup. rows(i): where the i-th 16 k of A's rows lie, two for each sum of
  // a thread. Where the last 64 columns are not all there, what lies behind a box gives sums that nobody asks for.
  template <int Count, class Operands>
  __device__ static void multiply(const uint4* weights, int tile, float (&sums)[Count], Operands&& rows) {
    const Operand own = operand_in_box(weights + tile * (kTile * kBoxDepth / 8));
    begin_products();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      add_product<2 * Count>(sums, own.at(step_in_boxes(i, kColumns)), rows(i), i == 0);
    }
    finish_products(sums);
  }

  // The sums as staged[row][column], from where any thread may take them after a barrier.
  __device__ void stage(float* staged) const {
    if (thread / 32 * 16 >= kColumns) {
      return;
    }
    float* own = staged + thread % 4 * 2 * kPitch + thread / kWarpgroup * kTile + column();
#pragma unroll
    for (int i = 0; i < Rows / 2; ++i) {
      own[(i / 4 * 8 + i % 2) * kPitch + i / 2 % 2 * 8] = sums[i];
    }
  }

  __device__ static float4 staged_sum(const float* staged, int row, int column) {
    return *reinterpret_cast<const float4*>(staged + row * kPitch + column);
  }
};

}  // namespace lpkernels::convnext
