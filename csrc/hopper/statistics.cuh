// Instance-norm statistics of what a convolution writes: each block reduces its tile's columns to mean and variance. An
// image's tiles are combined in a fixed order: by who reads them, if they are few, else by one small kernel.
#pragma once

#include "hopper/epilogue.cuh"

namespace lpkernels::hopper {

constexpr float kInstanceNormEps = 1e-5f;

// Pixels of tile `tile` (its number within the image) that lie inside.
LPKERNELS_HOST_DEVICE int tile_pixels(const ConvShape& shape, int tile) {
  const ConvBlock at = block_at(shape, 0, tile, 0, 0);
  return std::min(shape.tile_d, shape.depth - at.d) * std::min(shape.tile_h, shape.height - at.h) *
         std::min(shape.tile_w, shape.width - at.w);
}

template <class Config>
constexpr size_t statistics_bytes() {
  return sizeof(float2) * 8 * Config::BlockN;
}

// Adds up what the eight lanes that hold the same columns have of each: lane by lane half of the columns is handed over
// and the other half received. A lane ends with an eighth of the columns, from `column` on, in v's front.
template <int Half, int Lanes, int Count>
__device__ void add_up_rows(float (&v)[Count], int thread, int& column) {
  const bool upper = thread & Lanes;
  CUTLASS_PRAGMA_UNROLL
  for (int c = 0; c < Half; ++c) {
    const float other = __shfl_xor_sync(~0u, upper ? v[c] : v[Half + c], Lanes);
    v[c] = (upper ? v[Half + c] : v[c]) + other;
  }
  column += upper ? Half : 0;
  if constexpr (Lanes > 4) {
    add_up_rows<Half / 2, Lanes / 2>(v, thread, column);
  }
}

// Writes partials[tile][n] for the block's outputs: mean and biased variance. acc holds the final values, zero where
// there is no pixel.
template <class Config, int Width, class Accumulator>
__device__ void column_statistics(const ConvShape& shape, const ConvBlock& block, const Accumulator& acc, int thread,
                                  unsigned char* memory, float2* partials) {
  using F = Fragment<Width>;
  constexpr int kWarps = 8;
  float2(*sums)[Config::BlockN] = reinterpret_cast<float2(*)[Config::BlockN]>(memory);  // of each warp's rows
  sync_consumers();                                         // until then others may read the sums of the tile before
  constexpr int kColumns = Config::BlockN / 4, kOnce = 16;  // a thread's, and how many of them at a time
  CUTLASS_PRAGMA_UNROLL
  for (int first = 0; first < kColumns; first += kOnce) {
    float sum[kOnce], squares[kOnce];
    CUTLASS_PRAGMA_UNROLL
    for (int c = 0; c < kOnce; ++c) {
      const int j = (first + c) / Width, i = (first + c) % Width;
      sum[c] = squares[c] = 0.f;
      CUTLASS_PRAGMA_UNROLL
      for (int r = 0; r < (first + c < kColumns ? Config::BlockM / 64 : 0); ++r) {
        const float v = acc(F::index(Config::BlockN, r / 2, r % 2, j, i));
        sum[c] += v;
        squares[c] = fmaf(v, v, squares[c]);
      }
    }
    int column = 0, same = 0;
    add_up_rows<kOnce / 2, 16>(sum, thread, column);
    add_up_rows<kOnce / 2, 16>(squares, thread, same);
    CUTLASS_PRAGMA_UNROLL
    for (int c = 0; c < kOnce / 8; ++c) {
      const int own = first + column + c;
      if (kColumns % kOnce != 0 && own >= kColumns) {
        continue;
      }
      sums[thread / 32][F::output(thread, own / Width) + own % Width] = make_float2(sum[c], squares[c]);
    }
  }
  sync_consumers();
  if (thread < Config::BlockN && block.n + thread < shape.outputs) {
    float sum = 0.f, squares = 0.f;
    CUTLASS_PRAGMA_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += sums[warp][thread].x;
      squares += sums[warp][thread].y;
    }
    // Over the few pixels of a tile the difference of squares keeps its digits; over an image it would not.
    const int count =
        shape.whole_tiles ? Config::BlockM : tile_pixels(shape, block.tile % (tiles(shape) / shape.batch));
    const float part = 1.f / static_cast<float>(count), mean = sum * part;
    partials[int64_t{block.tile} * shape.outputs + block.n + thread] =
        make_float2(mean, fmaxf((squares - sum * mean) * part, 0.f));
  }
}

// Mean and M2 of `count` values.
struct Moments {
  float count, mean, m2;

  // Those of both (Chan et al. 1979): stable, for nothing large is subtracted.
  __device__ void add(const Moments& other) {
    const float all = count + other.count, difference = other.mean - mean;
    const float part = all > 0.f ? other.count / all : 0.f;
    mean = fmaf(difference, part, mean);
    m2 += other.m2 + difference * difference * count * part;
    count = all;
  }
};

// stats[b][n] = mean and 1 / sqrt(var + eps), var biased. A block owns 32 outputs of an image, 8 threads for each.
static __global__ void combine_statistics_kernel(const ConvShape shape, const float2* partials, float2* stats) {
  let_next_kernel_start();
  __shared__ Moments shared[8][32];
  const int lane = threadIdx.x, slice = threadIdx.y, n = blockIdx.x * 32 + lane;
  const int count = tiles(shape) / shape.batch, whole = shape.tile_d * shape.tile_h * shape.tile_w;
  const bool even = shape.whole_tiles;
  wait_for_kernel_before();
  const float2* of_image = partials + int64_t{blockIdx.y} * count * shape.outputs + n;
  Moments moments{};
#pragma unroll 16
  for (int tile = slice; n < shape.outputs && tile < count; tile += 8) {
    const float2 part = of_image[int64_t{tile} * shape.outputs];
    const float pixels = static_cast<float>(even ? whole : tile_pixels(shape, tile));
    moments.add({pixels, part.x, part.y * pixels});
  }
  shared[slice][lane] = moments;
  __syncthreads();
  if (slice > 0 || n >= shape.outputs) {
    return;
  }
  for (int i = 1; i < 8; ++i) {
    moments.add(shared[i][lane]);
  }
  stats[int64_t{blockIdx.y} * shape.outputs + n] =
      make_float2(moments.mean, rsqrtf(moments.m2 / moments.count + kInstanceNormEps));
}

inline void combine_statistics(const ConvShape& shape, const float2* partials, float2* stats, cudaStream_t stream) {
  const dim3 grid(ceil_div(shape.outputs, 32), shape.batch);
  launch_early("combine_statistics", &combine_statistics_kernel, grid, dim3(32, 8), 0, stream, shape, partials, stats);
}

}  // namespace lpkernels::hopper
