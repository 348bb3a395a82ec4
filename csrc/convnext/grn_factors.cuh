// Global response norm as factors of h, from the sums of squares of its tiles, in float:
//
//   norm[b, k] = sqrt(sum over rows of squares[b, row, k]),  factors[b, k] = 1 + gamma[k] norm[b, k] / (mean_K norm +
//   1e-6)
//
// Layouts: squares (B, rows, K), gamma (K,), factors (B, K). A block owns an image: a thread four k of every few rows,
// added up in order. Bound by latency: one round of loads, two barriers; 2 microseconds.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct GrnFactors {
  const float *squares, *gamma;
  float* factors;
  int rows, depth;  // of an image; K
};

struct FactorsMemory {
  static constexpr int kThreads = 768;
  static constexpr int kMostDepth = 4 * kThreads;
  static constexpr size_t kSums = sizeof(float4) * kThreads;  // of the warps; partial sums of squares are at 0
  static constexpr size_t kBytes = kSums + sizeof(float) * 32;
};

// Grid: (images).
static __global__ void __launch_bounds__(FactorsMemory::kThreads)
    grn_factors_kernel(const __grid_constant__ GrnFactors p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int kWarps = FactorsMemory::kThreads / 32;
  unsigned char* memory = shared_memory();
  auto* partial = reinterpret_cast<float4*>(memory);
  auto* sums = reinterpret_cast<float*>(memory + FactorsMemory::kSums);
  const int thread = static_cast<int>(threadIdx.x), image = static_cast<int>(blockIdx.x);
  const int quads = p.depth / 4, slices = FactorsMemory::kThreads / quads, slice = thread / quads;
  const int quad = thread % quads;
  const auto* squares = reinterpret_cast<const float4*>(p.squares) + int64_t{image} * p.rows * quads + quad;
  const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);

  let_next_kernel_start();
  const bool owns = slice == 0;
  const float4 gamma = owns ? *reinterpret_cast<const float4*>(p.gamma + 4 * quad) : zero;
  wait_for_kernel_before();
  float4 sum = zero;
  if (slice < slices) {
#pragma unroll 4
    for (int row = slice; row < p.rows; row += slices) {
      sum = sum + squares[row * quads];
    }
  }
  partial[thread] = sum;
  __syncthreads();
  float4 norm = zero;
  if (owns) {
#pragma unroll 1
    for (int i = 1; i < slices; ++i) {
      sum = sum + partial[i * quads + thread];
    }
    norm = make_float4(sqrtf(sum.x), sqrtf(sum.y), sqrtf(sum.z), sqrtf(sum.w));
  }
  const float of_warp = sum_of_lanes<32>((norm.x + norm.y) + (norm.z + norm.w));
  if (thread % 32 == 0) {
    sums[thread / 32] = of_warp;
  }
  __syncthreads();
  const float total = sum_of_lanes<32>(thread % 32 < kWarps ? sums[thread % 32] : 0.f);
  if (owns) {
    const float inverse = 1.f / (total / static_cast<float>(p.depth) + kEpsilon);
    const auto factor = [&](float gamma, float norm) { return fmaf(gamma, norm * inverse, 1.f); };
    *reinterpret_cast<float4*>(p.factors + int64_t{image} * p.depth + 4 * quad) =
        make_float4(factor(gamma.x, norm.x), factor(gamma.y, norm.y), factor(gamma.z, norm.z), factor(gamma.w, norm.w));
  }
#endif
}

}  // namespace lpkernels::convnext
