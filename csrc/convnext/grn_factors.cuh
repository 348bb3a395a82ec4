// Global response norm as factors of an image's h, from the sums of squares of its tiles, in float:
//
//   norm[k] = sqrt(sum over rows of squares[row, k]),  factors[k] = 1 + gamma[k] norm[k] / (mean_K norm + 1e-6)
//
// Layouts: squares (B, rows, K), gamma (K,). Some warps of a block make them in its shared memory: a thread has four k,
// of every few rows where there are fewer k than threads, and adds them up in order. Bound by latency: one to four
// rounds of loads, four barriers; 1000 clocks in the published stages, 1500 in the first.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct GrnFactors {
  static constexpr int kFewestThreads = 128;
  static constexpr int kMostDepth = 3072;
  static constexpr int kQuads = kMostDepth / 4 / kFewestThreads;  // of four k, a thread's

  struct Memory {
    float4 factors[kMostDepth / 4];  // and what they are made of
    float sums[kWarps];              // of the warps' norms
  };

  const float *squares, *gamma;
  int rows, depth;  // of an image; K

  // By `threads` threads, whole warps, that `sync` lets wait for each other: also for those who still read the factors
  // that were there before.
  template <class Sync>
  __device__ void make(int image, int thread, int threads, Memory& memory, Sync&& sync) const {
    const int quads = depth / 4, slices = max(threads / quads, 1), slice = slices == 1 ? 0 : thread / quads;
    const int first = thread - slice * quads;
    float4 sums[kQuads];
#pragma unroll
    for (float4& sum : sums) {
      sum = make_float4(0.f, 0.f, 0.f, 0.f);
    }
    const auto* of_image = reinterpret_cast<const float4*>(squares) + int64_t{image} * rows * quads + first;
#pragma unroll 4
    for (int row = slice; row < (slice < slices ? rows : 0); row += slices) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (first + i * threads < quads) {
          sums[i] = sums[i] + of_image[row * quads + i * threads];
        }
      }
    }
    sync();
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (slice < slices && first + i * threads < quads) {
        memory.factors[slice * quads + first + i * threads] = sums[i];
      }
    }
    sync();
    float norms = 0.f;
#pragma unroll 1
    for (int quad = thread; quad < quads; quad += threads) {
      const float4 own_gamma = reinterpret_cast<const float4*>(gamma)[quad];
      float4 sum = memory.factors[quad];
#pragma unroll 1
      for (int i = 1; i < slices; ++i) {
        sum = sum + memory.factors[i * quads + quad];
      }
      const float4 norm = make_float4(approximate_root(sum.x), approximate_root(sum.y), approximate_root(sum.z),
                                      approximate_root(sum.w));
      norms += (norm.x + norm.y) + (norm.z + norm.w);
      memory.factors[quad] =
          make_float4(own_gamma.x * norm.x, own_gamma.y * norm.y, own_gamma.z * norm.z, own_gamma.w * norm.w);
    }
    norms = sum_of_lanes<32>(norms);
    if (thread % 32 == 0) {
      memory.sums[thread / 32] = norms;
    }
    sync();
    norms = 0.f;
#pragma unroll 1
    for (int warp = 0; warp < threads / 32; ++warp) {
      norms += memory.sums[warp];
    }
    const float inverse =
        approximate_reciprocal(fmaf(norms, approximate_reciprocal(static_cast<float>(depth)), kEpsilon));
#pragma unroll 1
    for (int quad = thread; quad < quads; quad += threads) {
      const float4 gain = memory.factors[quad];
      memory.factors[quad] = make_float4(fmaf(gain.x, inverse, 1.f), fmaf(gain.y, inverse, 1.f),
                                         fmaf(gain.z, inverse, 1.f), fmaf(gain.w, inverse, 1.f));
    }
    sync();
  }
};

}  // namespace lpkernels::convnext
