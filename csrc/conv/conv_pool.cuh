// What conv_pool's kernels do to the sums of a convolution: y = the mean over 2x2 pixels of relu(sum + bias).
//
// Two rows of pixels lie in one thread, those in w in threads next to each other: pooling needs registers and one
// shuffle, but for narrow tiles.
#pragma once

#include "common/cuda.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"

namespace lpkernels {

using namespace hopper;

struct PoolEpilogue : ReadsNothingAhead {
  static constexpr bool kClusters = true, kManyTiles = true, kHasValues = true;
  static constexpr int kWidth = 8;
  using F = Fragment<kWidth>;

  struct Params {
    const float* bias;
    __half* out;
    int64_t out_stride;
  };

  template <class Config>
  using Sums = ClusterSums<Config, 2>;

  template <class Config>
  static constexpr size_t staged_bytes() {
    return 0;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return OutputValues<Config, 1>::kBytes;
  }

  template <class Config>
  static constexpr size_t shared_own_bytes() {
    return own_bytes<Config>();
  }

  template <class Config>
  __device__ static void store_values(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                                      const EpilogueMemory& memory) {
    OutputValues<Config, 1>::store(memory.own, block, thread, [&](int n, float (&bias)[1]) {
      if (block.n + n < shape.outputs) {
        bias[0] = __ldg(params.bias + block.n + n);
      }
    });
  }

  // Two rows of a thread, at the lane's outputs of group j: v; row[s] of the tile are v[s]'s pixels. They are
  // neighbours in h, but for tiles of fewer than 8 pixels in w. All lanes of a warp call it together.
  template <bool AnyTile>
  __device__ static void pool(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                              const float* all_bias, const int (&row)[2], int j, float (&v)[2][kWidth]) {
    float bias[kWidth];
    load_vector(all_bias + F::output(thread, j), bias);
    CUTLASS_PRAGMA_UNROLL
    for (int s = 0; s < 2; ++s) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kWidth; ++i) {
        v[s][i] = fmaxf(v[s][i] + bias[i], 0.f);
      }
    }
    if (AnyTile && shape.tile_w < 8) {
      CUTLASS_PRAGMA_UNROLL
      for (int s = 0; s < 2; ++s) {
        add_neighbours(v[s], 4);
        add_neighbours(v[s], 4 * shape.tile_w);
        store(params, shape, block, row[s], F::output(thread, j), v[s]);
      }
      return;
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kWidth; ++i) {
      v[0][i] += v[1][i];
    }
    add_neighbours(v[0], 4);
    store(params, shape, block, row[0], F::output(thread, j), v[0]);
  }

  // Those of the lane whose number differs by `lanes`.
  template <int Width>
  __device__ static void add_neighbours(float (&v)[Width], int lanes) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      v[i] += __shfl_xor_sync(~0u, v[i], lanes);
    }
  }

  // v: the sum of four pixels, where `row` of the tile is the upper left of them.
  template <int Width>
  __device__ static void store(const Params& params, const ConvShape& shape, const ConvBlock& block, int row,
                               int output, const float (&v)[Width]) {
    const Pixel at = pixel_at(shape, block, row);
    if (block.n + output >= shape.outputs || at.w % 2 != 0 || at.h % 2 != 0 || !inside(shape, at)) {
      return;
    }
    float mean[Width];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      mean[i] = v[i] * 0.25f;
    }
    const int64_t line = (int64_t{block.b} * shape.depth + at.d) * (shape.height / 2) + at.h / 2;
    store_vector(params.out + (line * (shape.width / 2) + at.w / 2) * params.out_stride + block.n + output, mean);
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory, NothingAhead) {
    const float* bias = OutputValues<Config, 1>::of_tile(memory.own, block);
    if constexpr (Config::Clusters) {
      if (shape.split > 1) {
        return Sums<Config>::add_up(shape.split, acc, thread, memory.received,
                                    [&](int tile_m, int, int j, float (&v)[2][kWidth]) {
                                      const int row[2] = {F::row(thread, tile_m, 0), F::row(thread, tile_m, 1)};
                                      pool<true>(params, shape, block, thread, bias, row, j, v);
                                    });
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int pair = 0; pair < Config::BlockM / 128; ++pair) {
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < Config::BlockN / F::kGroup; ++j) {
        int row[2];
        float v[2][kWidth];
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 2; ++i) {  // neighbours in h
          const int tile_m = Config::kRowPairs ? i : pair, s = Config::kRowPairs ? pair : i;
          row[i] = Config::row(thread, tile_m, s);
          CUTLASS_PRAGMA_UNROLL
          for (int e = 0; e < kWidth; ++e) {
            v[i][e] = acc(F::index(Config::BlockN, tile_m, s, j, e));
          }
        }
        pool<false>(params, shape, block, thread, bias, row, j, v);
      }
    }
  }
};

// conv_pool_winograd.cu
void launch_conv_pool_winograd(const Activation& x, const Tensor& weight, ConvShape shape,
                               const PoolEpilogue::Params& params, cudaStream_t stream);

}  // namespace lpkernels
