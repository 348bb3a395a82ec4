// The stem of ConvNeXt: a picture cut into 4x4 patches, a linear map of each, layer norm over channels with its affine:
//
//   v = W patch + bias,  y = (v - mean_N v) / sqrt(var_N v + 1e-6) * norm_weight + norm_bias
//
// Layouts: x (B, H, W, 3) with any strides, bytes or floats; W (N, 4, 4, 3), y (B, H / 4, W / 4, N), half precision;
// sums, norm and its vectors in float. Bytes are whole numbers, exact in half precision; their product is divided by
// 255. A warp owns 16 patches and all outputs, so that the norm needs its own lanes alone; W is in registers and the
// vectors in shared memory before the wait for the kernel ahead. The order of a product's k is free: a lane has one of
// a patch's four rows, neighbours in W and in most pictures. So is the order of W's rows: a lane's sums are whole
// vectors of y.
//
// A 256x256 picture: 38 MFLOP; 0.2 MB in, 0.8 MB out (4096 x 96), 9 KB of weights; 128 blocks of two warps. Bound by
// one chain of waits: 24 loads of bytes a thread, all under way at once, 36 products, the norm. By count 1500 clocks
// after the wait: 2 microseconds with a kernel's beginning.
#pragma once

#include "common/divisor.h"
#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct PatchNorm {
  static constexpr int kPatch = 4, kColours = 3;
  static constexpr int kRowValues = kPatch * kColours;  // of a patch's row: three of a lane's k16 products
  static constexpr int kProducts = kRowValues / 4;
  static constexpr int kMostOutputs = 96;
  static constexpr int kTiles = kMostOutputs / 8;
  static constexpr int kThreads = 64;
  static constexpr int kPatches = kThreads / 32 * 16;  // of a block
  static constexpr size_t kBytes = sizeof(float) * 3 * kMostOutputs;

  const void* x;
  const __half* weight;
  const float *bias, *norm_weight, *norm_bias;
  __half* y;
  int64_t stride_b, stride_h, stride_w, stride_c;  // of x, elements
  Divisor height, width;                           // of y
  int outputs;                                     // a multiple of 8
  int patches;                                     // of all pictures
  float scale;                                     // of x
};

// Two neighbours of a patch's row, the first of them number `i`.
template <class Pixel>
__device__ uint32_t row_pair(const PatchNorm& p, const Pixel* row, int i) {
  const auto value = [&](int k) {
    return static_cast<float>(row[k / PatchNorm::kColours * p.stride_w + k % PatchNorm::kColours * p.stride_c]);
  };
  return halves(value(i), value(i + 1));
}

template <class Pixel>
__global__ void __launch_bounds__(PatchNorm::kThreads) patch_norm_kernel(const __grid_constant__ PatchNorm p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using P = PatchNorm;
  const int thread = threadIdx.x, g = thread % 32 / 4, t = thread % 4;
  auto* bias = reinterpret_cast<float*>(shared_memory());
  float *norm_weight = bias + P::kMostOutputs, *norm_bias = norm_weight + P::kMostOutputs;

  let_next_kernel_start();
  uint2 weights[P::kTiles][P::kProducts];
#pragma unroll
  for (int j = 0; j < P::kTiles; ++j) {
    const int n = j / 4 * 32 + g / 2 * 8 + j % 4 * 2 + g % 2;
    const __half* row = p.weight + (n * P::kPatch + t) * P::kRowValues;
#pragma unroll
    for (int i = 0; i < P::kProducts; ++i) {
      weights[j][i] = n < p.outputs ? *reinterpret_cast<const uint2*>(row + 4 * i) : make_uint2(0, 0);
    }
  }
  for (int n = thread; n < P::kMostOutputs; n += P::kThreads) {
    const bool exists = n < p.outputs;
    bias[n] = exists ? p.bias[n] : 0.f;
    norm_weight[n] = exists ? p.norm_weight[n] : 0.f;
    norm_bias[n] = exists ? p.norm_bias[n] : 0.f;
  }
  const int first = static_cast<int>(blockIdx.x) * P::kPatches + thread / 32 * 16 + g;  // and the eighth after it
  const Pixel* rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int m = min(first + 8 * i, p.patches - 1), line = p.width.quotient(m), image = p.height.quotient(line);
    const int h = line - image * p.height.value, w = m - line * p.width.value;
    rows[i] = worked_out(static_cast<const Pixel*>(p.x) + image * p.stride_b +
                         (int64_t{h} * P::kPatch + t) * p.stride_h + int64_t{w} * P::kPatch * p.stride_w);
  }
  __syncthreads();
  wait_for_kernel_before();

  uint32_t patches[P::kProducts][4];
#pragma unroll
  for (int i = 0; i < P::kProducts; ++i) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      patches[i][pair] = row_pair(p, rows[pair % 2], 4 * i + pair / 2 * 2);
    }
  }
  float sums[P::kTiles][4] = {};
#pragma unroll
  for (int j = 0; j < P::kTiles; ++j) {
#pragma unroll
    for (int i = 0; i < P::kProducts; ++i) {
      multiply_add(sums[j], patches[i], weights[j][i].x, weights[j][i].y);
    }
  }

  const float inverse_count = 1.f / static_cast<float>(p.outputs);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    constexpr int kVectors = P::kTiles / 4;
    float v[kVectors][8], sum = 0.f, squares = 0.f;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        v[k][e] = fmaf(sums[4 * k + e / 2][2 * i + e % 2], p.scale, bias[32 * k + 8 * t + e]);
        sum += v[k][e];
      }
    }
    const float mean = sum_of_lanes<4>(sum) * inverse_count;  // beyond the outputs v is zero
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
#pragma unroll
      for (float& value : v[k]) {
        value = 32 * k + 8 * t < p.outputs ? value - mean : 0.f;
        squares = fmaf(value, value, squares);
      }
    }
    const float factor = rsqrtf(fmaf(sum_of_lanes<4>(squares), inverse_count, kEpsilon));
    const int m = first + 8 * i;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int n = 32 * k + 8 * t;
      if (m < p.patches && n < p.outputs) {
        uint32_t pairs[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int at = n + 2 * e;
          pairs[e] = halves(fmaf(v[k][2 * e] * factor, norm_weight[at], norm_bias[at]),
                            fmaf(v[k][2 * e + 1] * factor, norm_weight[at + 1], norm_bias[at + 1]));
        }
        *reinterpret_cast<uint4*>(p.y + int64_t{m} * p.outputs + n) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
  }
#endif
}

}  // namespace lpkernels::convnext
