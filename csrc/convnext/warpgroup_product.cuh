// The matrix product of convnext_stage on Hopper: C[m, n] = sum over k A[m, k] W[n, k] in half precision, sums in
// float, both factors in shared memory.
//
// Transposed, for wgmma takes 64 rows and the pixels may be 32: a warpgroup owns 64 columns of C, rows of W to wgmma,
// by all rows of A and all k, so that no parts of a sum are to be added up. W is in boxes of 64 k (load_box), A in
// vectors of eight k by row or of eight rows by k. One to three of the four warpgroups multiply. Bound by shared
// memory, 128 bytes a clock: 16 k take 2 KB of W and 32 bytes a row of A, so that 64 columns by 64 rows by 384 k are
// 768 clocks, as many as the tensor cores take, and 64 by 32 by 384 are 576.
#pragma once

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
  static constexpr int kSumming = 2 * Columns;  // of them, that have columns
  static constexpr int kGroups = Rows / 8;      // of rows, of each of which a thread has two
  static_assert(kMultiplying < kThreads && Rows % 8 == 0 && Columns % 16 == 0 && Depth % kStep == 0);

  int thread;
  // [group of rows][column() or the one 8 further][row 2 * (thread % 4) of the group or the next]; of all threads, or
  // registers would be kept for them throughout a loop
  float sums[Rows / 2] = {};

  __device__ explicit WarpgroupProduct(int thread) : thread(thread) {}

  // Where the i-th 16 k of W begin, in vectors of eight.
  LPKERNELS_HOST_DEVICE static constexpr int step_in_boxes(int i) {
    constexpr int kStepsOfBox = kBoxDepth / kStep;
    return i / kStepsOfBox * (kBoxBytes / 16) + i % kStepsOfBox * (kStep / 8);
  }

  __device__ bool multiplies() const { return thread < kMultiplying; }
  __device__ bool sums_exist() const { return thread < kSumming; }
  // The 64 columns of this thread's warpgroup, among those that multiply.
  __device__ int tile() const { return kMultiplying > kWarpgroup ? uniform(thread / kWarpgroup) : 0; }
  // The first of this thread's two columns; the other is 8 further.
  __device__ int column() const { return thread / 32 * 16 + thread % 32 / 4; }

  // sums = W A^T of a tile's columns, by a warpgroup. rows(i): where the i-th 16 k of A's rows lie, two for each sum of
  // a thread, as operand_of_columns if ByColumns. Where the last 64 columns are not all there, what lies behind a box
  // gives sums that nobody asks for.
  template <bool ByColumns, int Count, class Operands>
  __device__ static void multiply(const uint4* weights, int tile, float (&sums)[Count], Operands&& rows) {
    const Operand own = operand_in_box(weights + tile * (kTile * kBoxDepth / 8));
    begin_products();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      add_product<2 * Count, ByColumns>(sums, own.at(step_in_boxes(i)), rows(i), i == 0);
    }
    finish_products(sums);
  }
};

}  // namespace lpkernels::convnext
