// Which outputs of depthwise_linear a block has, and what becomes of their sums: layer norm, bias, GELU, sums of
// squares.
#pragma once

#include "convnext/depthwise_exchange.cuh"

namespace lpkernels::convnext {

// max(v, 0) - |v| / 2 * erfc(|v| / sqrt(2)), erfc by Abramowitz and Stegun 7.1.26: no branch, within 4e-7.
__device__ inline float gelu(float v) {
  const float size = fabsf(v);
  const float t = approximate_reciprocal(fmaf(0.3275911f * 0.7071067811865476f, size, 1.f));
  float series = fmaf(t, -0.5f * 1.061405429f, 0.5f * 1.453152027f);
  series = fmaf(t, series, -0.5f * 1.421413741f);
  series = fmaf(t, series, 0.5f * 0.284496736f);
  series = fmaf(t, series, -0.5f * 0.254829592f);
  return fmaf(series * (t * size), approximate_exp2(-0.7213475204444817f * v * v), fmaxf(v, 0.f));
}

// What a block does: some outputs of a tile of an image.
struct DepthwisePlace {
  int tile, image, top, left, first_n;
  int own, base;  // rank among the blocks of the tile that exchange v, and the hardware's rank of the first of them

  // Blocks in order: column blocks of a tile, tiles of an image, images.
  __device__ DepthwisePlace(const DepthwiseLinear& p, int patch_h, int columns, int block, int rank) {
    const int of = ceil_div(p.outputs, columns), tiles_w = ceil_div(p.width, kPatchW), tile_of_all = block / of;
    const int column = block % of;
    image = tile_of_all / p.tiles;
    tile = tile_of_all % p.tiles;
    top = tile / tiles_w * patch_h;
    left = tile % tiles_w * kPatchW;
    first_n = column * columns;
    own = column & (p.cluster - 1);
    base = rank - own;
  }
};

// What a block has in shared memory when its product is done.
struct StagedSums {
  const float* sums;                  // as the product stages them
  const float2* norms;                // of each pixel
  const int* targets;                 // of each pixel in the image, negative outside
  const float *weight_totals, *bias;  // of each column
  float4* partial;                    // room for sums of squares
};

// Layer norm, bias, GELU, h, and the tile's sums of squares in a fixed order. columns: of the block's that exist; calls
// store_h(target, column, four rounded values) and store_squares(column, sums of four).
template <class Product, class StoreH, class StoreSquares>
__device__ void finish(const StagedSums& staged, int columns, int thread, StoreH&& store_h,
                       StoreSquares&& store_squares) {
  constexpr int kQuads = Product::kQuads, kSlices = Product::kSlices;
  constexpr int kSlicesOfWarp = 32 % kQuads == 0 ? 32 / kQuads : 1;
  const int slice = thread / kQuads, column = thread % kQuads * 4;
  float4 squares = make_float4(0.f, 0.f, 0.f, 0.f);
  if (slice < kSlices) {
    if (column < columns) {
      const float4 own_bias = *reinterpret_cast<const float4*>(staged.bias + column);
      const float4 totals = *reinterpret_cast<const float4*>(staged.weight_totals + column);
#pragma unroll 2  // more would be fetched for a single use
      for (int i = 0; i < Product::kRows / kSlices; ++i) {
        const int pixel = slice + i * kSlices, target = staged.targets[pixel];
        if (target < 0) {
          continue;
        }
        const float2 norm = staged.norms[pixel];
        const float4 sum = Product::staged_sum(staged.sums, pixel, column);
        const auto value = [&](float sum, float total, float bias) {
          return gelu(fmaf(fmaf(-norm.x, total, sum), norm.y, bias));
        };
        const uint2 rounded =
            make_uint2(halves(value(sum.x, totals.x, own_bias.x), value(sum.y, totals.y, own_bias.y)),
                       halves(value(sum.z, totals.z, own_bias.z), value(sum.w, totals.w, own_bias.w)));
        store_h(target, column, rounded);
        const float2 first = floats(rounded.x), second = floats(rounded.y);
        squares.x = fmaf(first.x, first.x, squares.x);
        squares.y = fmaf(first.y, first.y, squares.y);
        squares.z = fmaf(second.x, second.x, squares.z);
        squares.w = fmaf(second.y, second.y, squares.w);
      }
    }
#pragma unroll
    for (int lanes = kQuads; lanes < kSlicesOfWarp * kQuads; lanes *= 2) {
      squares = squares + shuffled(squares, lanes);
    }
    if (slice % kSlicesOfWarp == 0) {
      staged.partial[slice / kSlicesOfWarp * kQuads + column / 4] = squares;
    }
  }
  __syncthreads();
  if (slice == 0 && column < columns) {
#pragma unroll 8
    for (int i = 1; i < kSlices / kSlicesOfWarp; ++i) {
      squares = squares + staged.partial[i * kQuads + thread];
    }
    store_squares(column, squares);
  }
}

}  // namespace lpkernels::convnext
