// Sums of squares of what a product writes, by image and output: each block adds up its tile's, who reads them the
// tiles' in order.
#pragma once

#include "hopper/image_tile.h"
#include "hopper/statistics.cuh"

namespace lpkernels::hopper {

template <class Config>
constexpr size_t squares_bytes() {
  return sizeof(float) * 8 * Config::BlockN;
}

// Writes squares[image][tile of it][n] for the block's outputs. acc holds the final values, zero where there is no
// pixel; tiles as `set_image_tile` has them.
template <class Config, int Width, class Accumulator>
__device__ void column_squares(const ConvShape& shape, const ConvBlock& block, const Accumulator& acc, int thread,
                               unsigned char* memory, float* squares) {
  using F = Fragment<Width>;
  constexpr int kWarps = 8, kColumns = Config::BlockN / 4, kOnce = 16;  // a thread's columns, and at a time
  static_assert(Config::BlockM == kImageTile && kColumns % kOnce == 0);
  float (*sums)[Config::BlockN] = reinterpret_cast<float (*)[Config::BlockN]>(memory);  // of each warp's rows
  sync_consumers();  // until then others may read the sums of the tile before
  CUTLASS_PRAGMA_UNROLL
  for (int first = 0; first < kColumns; first += kOnce) {
    float sum[kOnce];
    CUTLASS_PRAGMA_UNROLL
    for (int c = 0; c < kOnce; ++c) {
      const int j = (first + c) / Width, i = (first + c) % Width;
      const float upper = acc(F::index(Config::BlockN, 0, 0, j, i)), lower = acc(F::index(Config::BlockN, 0, 1, j, i));
      sum[c] = fmaf(upper, upper, lower * lower);
    }
    int column = 0;
    add_up_rows<kOnce / 2, 16>(sum, thread, column);
    CUTLASS_PRAGMA_UNROLL
    for (int c = 0; c < kOnce / 8; ++c) {
      const int own = first + column + c;
      sums[thread / 32][F::output(thread, own / Width) + own % Width] = sum[c];
    }
  }
  sync_consumers();
  const int warps = kWarps / shape.tile_d;  // that have rows of the same image
  if (thread < Config::BlockN && block.n + thread < shape.outputs) {
    CUTLASS_PRAGMA_NO_UNROLL
    for (int i = 0; i < shape.tile_d && block.d + i < shape.depth; ++i) {
      float sum = 0.f;
#pragma unroll 4
      for (int warp = i * warps; warp < (i + 1) * warps; ++warp) {
        sum += sums[warp][thread];
      }
      const int64_t row = int64_t{block.d + i} * tiles_of_image(shape) + tile_in_image(shape, block);
      squares[row * shape.outputs + block.n + thread] = sum;
    }
  }
}

}  // namespace lpkernels::hopper
