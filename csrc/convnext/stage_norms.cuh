// GRN's norms within convnext_stage: |h| = sqrt(sum over an image of h^2), of each of the N columns, and their mean.
//
// The grid's blocks divide the columns among themselves, add up the tiles' squares and hand |h| to all by mail, two
// ways through the L2; of an image of few tiles every block adds up all squares itself, one way, 24 KB.
#pragma once

#include "convnext/stage_parameters.cuh"

namespace lpkernels::convnext {

__device__ inline float4 roots(float4 v) {
  return make_float4(approximate_root(v.x), approximate_root(v.y), approximate_root(v.z), approximate_root(v.w));
}

// The norms of some columns, of all images, that a thread block adds up and puts into the mail, by a warp each: first
// by those that neither load h nor ask for weights.
__device__ inline void add_up_squares(const ConvNextStage& p, int block, int thread) {
  constexpr int kFirstWarp = kTellingThread / 32 + 1;
  const int lane = thread % 32, first = block_index() * p.quads_of_block;
  const int count = min(p.quads_of_image.value * p.batch - first, p.quads_of_block);
#pragma unroll 1
  for (int i = (thread / 32 + kWarps - kFirstWarp) % kWarps; i < count; i += kWarps) {
    const int quad = first + i, image = p.quads_of_image.quotient(quad);
    const float* from =
        p.mail.at<const float>(block, p.mail.squares) + int64_t{image} * (p.tiles - 1) * p.wide + 4 * quad;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
    for (int rows = 0; rows < p.tiles; rows += 2 * 32) {
      const int row = rows + lane;
      uint4 values[2] = {absent_if(row < p.tiles), absent_if(row + 32 < p.tiles)};
      receive(values, [&](int i) { return reinterpret_cast<const uint4*>(from + int64_t{row + i * 32} * p.wide); });
      sum = sum + (floats_of(values[0]) + floats_of(values[1]));
    }
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      sum = sum + shuffled(sum, lanes);
    }
    if (lane == 0) {
      store_words(p.mail.at<float>(block, p.mail.norms) + 4 * quad, words_of(roots(sum)));
    }
  }
}

// |h| on its way to a thread: of some groups of four columns, or as the squares of p.few_tiles tiles, two of two groups
// or four of one. FewTiles: whether there may be so few; Depth: of a thread block's piece of N.
template <bool FewTiles, int MostWide, int Depth>
struct StageNorms {
  static constexpr int kQuads = ceil_div(MostWide / 4, kThreads);  // of a thread
  static constexpr int kWords = FewTiles ? 4 : kQuads;
  static_assert(kQuads <= 2);

  struct Memory {
    alignas(16) float gains[Depth];  // gamma, then gamma |h|, of the piece's columns
    alignas(16) float sums[kWarps];  // of |h|
  };

  const uint4* from;
  int tiles, quads;  // tiles: whose squares come, or 0
  uint4 values[kWords];

  // Squares of so many tiles are a thread's for all of its columns, if not 0.
  static int few_tiles(int tiles, int quads) {
    const bool two = FewTiles && tiles <= 2, four = FewTiles && tiles <= 4 && quads <= kThreads;
    return two ? 2 : four ? 4 : 0;
  }

  // Asks for them.
  __device__ StageNorms(const ConvNextStage& p, int block, int image, int thread)
      : tiles(FewTiles ? p.few_tiles : 0), quads(p.quads_of_image.value) {
    const int rows = tiles > 0 ? p.tiles : 1;
    from = p.mail.at<const uint4>(block, tiles > 0 ? p.mail.squares : p.mail.norms) + int64_t{image} * rows * quads +
           thread;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      values[i] = absent_if(row_of(i) < rows && thread + group_of(i) * kThreads < quads);
    }
    load_absent(values, *this);
  }

  // Where the i-th word is.
  __device__ const uint4* operator()(int i) const { return from + row_of(i) * quads + group_of(i) * kThreads; }

  // 1 / (mean_N |h| + eps) of the image, and gamma |h| of the columns from first_k on into `memory`; the block meets.
  __device__ float finish(int first_k, int wide, int thread, Memory& memory) {
    float4 norms[kQuads];
    receive(norms);
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const float4 norm = norms[i];
      sum += (norm.x + norm.y) + (norm.z + norm.w);
      if (const int k = 4 * (thread + i * kThreads) - first_k; static_cast<unsigned>(k) < Depth) {
        auto* gain = reinterpret_cast<float4*>(memory.gains + k);
        const float4 gamma = k + first_k < wide ? *gain : make_float4(0.f, 0.f, 0.f, 0.f);
        *gain = make_float4(gamma.x * norm.x, gamma.y * norm.y, gamma.z * norm.z, gamma.w * norm.w);
      }
    }
    sum = sum_of_lanes<32>(sum);
    if (thread % 32 == 0) {
      memory.sums[thread / 32] = sum;
    }
    __syncthreads();
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int i = 0; i < kWarps; i += 4) {
      total = total + *reinterpret_cast<const float4*>(memory.sums + i);
    }
    const float mean = ((total.x + total.y) + (total.z + total.w)) * approximate_reciprocal(static_cast<float>(wide));
    return approximate_reciprocal(mean + kEpsilon);
  }

 private:
  __device__ int row_of(int i) const { return tiles > 0 ? i & (tiles - 1) : 0; }
  __device__ int group_of(int i) const { return tiles > 0 ? i >> (tiles / 2) : i; }

  __device__ void receive(float4 (&norms)[kQuads]) {
    convnext::receive(values, *this);
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      norms[i] = floats_of(values[i]);
    }
    if constexpr (FewTiles) {
      const float4 first = floats_of(values[0]) + floats_of(values[1]);
      const float4 second = floats_of(values[2]) + floats_of(values[3]);
      if (tiles == 4) {
        norms[0] = roots(first + second);
        norms[1] = make_float4(0.f, 0.f, 0.f, 0.f);
      } else if (tiles == 2) {
        norms[0] = roots(first);
        norms[1] = roots(second);
      }
    }
  }
};

}  // namespace lpkernels::convnext
