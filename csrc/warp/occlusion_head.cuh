// The occlusion map of the dense motion network, a 7x7 convolution over all depths and channels to one output:
//
//   columns[i, tap, pixel] = sum_{d in group i, c} weight[tap, d, c] x[d, pixel, c]
//   map[h, w] = sigmoid(bias + sum_{i, kh, kw} columns[i, 7 kh + kw, h + kh - 3, w + kw - 3])
//
// Layouts: x (B, D, H, W, C), its pixels perhaps those of a wider buffer, and weight (56, D, C), half precision;
// columns (B, groups, 49, H * W and a rest), bias (1,) and map (B, H, W), float. The shifts do not depend on depth, so
// depths are summed in the product, in groups of two: as many as it takes to fill the GPU.
//
// First kernel: a block owns 256 pixels and a group, a warp 32 of the pixels and all taps. The group's weights are in
// shared memory before the wait for the kernel ahead. x goes from global memory to registers, for one lane alone needs
// a value: the order of a product's k is free, so a lane's vector of eight neighbours makes fragments of two products.
// Pixels are the columns of a product, taps its rows: then a fragment of x is registers next to each other.
// Second kernel: a block owns 32 pixels, a warp one row of taps and a share of the groups.
//
// Published shape, D = 16, 64x64, C = 144: 1.1 GFLOP; 19 MB of x and 0.26 MB of weights in, 6.4 MB of columns out and
// in again. By count, in clocks of each of 128 blocks: 147 KB of x out of the L2 3500, beside it 2304 products of the
// tensor cores 3600 and 2300 of reading weights from shared memory; 50 KB of columns 1200. The second kernel: 28 loads
// a thread under way at once, 50 KB, 1500. 3.5 and 2 microseconds with their beginnings; bound by reading x.
#pragma once

#include "common/host_device.h"
#include "convnext/device.cuh"

namespace lpkernels::occlusion {

using namespace convnext;  // its instructions

constexpr int kKernel = 7, kTaps = kKernel * kKernel;
constexpr int kRows = 56;                      // of the packed weight
constexpr int kTiles = (kTaps + 15) / 16;      // of taps
constexpr int kStepVectors = 2 * kTiles * 32;  // of the weights of 32 k
constexpr int kDepths = 2;                     // of a group
constexpr int kThreads = 256, kWarpPixels = 32, kPixels = kThreads / 32 * kWarpPixels;
constexpr int kAhead = 5;  // steps of 32 k whose x is under way: 80 KB a block
constexpr int kMostChannels = 512;
constexpr int kSumAhead = 4;  // groups of which a warp of the second kernel loads its row of taps at once
constexpr int kSumPixels = 32, kSumParts = 2, kSumWarps = kKernel * kSumParts, kSumThreads = 32 * kSumWarps;
constexpr size_t kSumBytes = sizeof(float) * kSumWarps * kSumPixels;

struct OcclusionHead {
  const __half *x, *weight;
  const float* bias;
  float *columns, *map;
  int depth, height, width, channels;
  int pixel_vectors;  // vectors of eight channels between pixels of x
};

LPKERNELS_HOST_DEVICE int groups_of(int depth) {
  return (depth + kDepths - 1) / kDepths;
}

// Shared memory of the first kernel: a group's weights, in whole steps.
inline size_t weight_bytes(int channels) {
  return size_t{16} * ((kDepths * channels / 8 + 3) / 4) * kStepVectors;
}

// Floats between rows of columns: whole blocks, so that all that a block has is stored.
LPKERNELS_HOST_DEVICE int64_t column_pitch(int size) {
  return int64_t{size + kPixels - 1} / kPixels * kPixels;
}

// A lane's part of x, step by step: the vector of eight k that its place among four lanes says, for four pixels.
struct PixelVectors {
  const uint4* pixels[4];  // the group's first vector of each
  int skip;                // vectors between the end of a pixel and its next depth
  int per_depth, count;    // vectors of a depth, and of the group
  int vector;              // the next, and where it is
  int offset;

  // Of a lane with the first vector `t`; plane: vectors between depths.
  __device__ PixelVectors(int t, int per_depth, int count, int plane)
      : skip(plane - per_depth),
        per_depth(per_depth),
        count(count),
        vector(t),
        offset(t + (t < per_depth ? 0 : skip)) {}

  __device__ void load_next(uint4 (&x)[4]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      x[n] = make_uint4(0, 0, 0, 0);
      if (vector < count) {
        x[n] = pixels[n][offset];
      }
    }
    offset += 4 + (vector < per_depth && vector + 4 >= per_depth ? skip : 0);
    vector += 4;
  }
};

// Copies a group's weights, `count` vectors of eight k of each tap, to where the tensor cores' lanes take them: of each
// product of 16 k and 16 taps, a lane's pairs of k of taps g and g + 8, two of its eight neighbours each.
__device__ inline void copy_weights(const __half* weight, int64_t row_pitch, int count, int thread, uint4* shared) {
  static_assert(kStepVectors == kThreads);
  const int lane = thread % 32, tap = thread / 32 % kTiles * 16 + lane / 4;
  const int vector = lane % 4, half = thread / (32 * kTiles);
  const __half* upper = weight + tap * row_pitch + vector * 8 + half * 4;
  const __half* lower = upper + 8 * row_pitch;
  const auto pairs = [](const __half* from, bool exists) {
    return exists ? *reinterpret_cast<const uint2*>(from) : make_uint2(0, 0);
  };
#pragma unroll 9  // the published shape's all under way at once
  for (int first = 0; first < count; first += 4) {
    const bool exists = first + vector < count;
    const uint2 a = pairs(upper + first * 8, exists && tap < kTaps);
    const uint2 b = pairs(lower + first * 8, exists && tap + 8 < kTaps);
    shared[first * (kStepVectors / 4) + thread] = make_uint4(a.x, b.x, a.y, b.y);
  }
}

// sums[tile of taps][8 pixels] += all taps by 32 k times 32 pixels. weights: this lane's vector of the step's first.
__device__ inline void multiply_step(const uint4 (&x)[4], const uint4* weights, float (&sums)[kTiles][4][4]) {
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const uint4 w = weights[32 * i];
    const uint32_t taps[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      multiply_add(sums[i % kTiles][n], taps, i < kTiles ? x[n].x : x[n].z, i < kTiles ? x[n].y : x[n].w);
    }
  }
}

// Grid: (tiles of 256 pixels, groups, batch).
__global__ void __launch_bounds__(kThreads, 1) occlusion_columns_kernel(const __grid_constant__ OcclusionHead p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const int thread = threadIdx.x, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int group = blockIdx.y, image = blockIdx.z, first_depth = group * kDepths;
  const int size = p.height * p.width, per_depth = p.channels / 8;
  const int vectors = min(kDepths, p.depth - first_depth) * per_depth, steps = (vectors + 3) / 4;
  const int64_t depth = p.depth;
  auto* weights = reinterpret_cast<uint4*>(shared_memory());

  let_next_kernel_start();
  copy_weights(p.weight + first_depth * p.channels, depth * p.channels, vectors, thread, weights);
  const auto* from = reinterpret_cast<const uint4*>(p.x) + (image * depth + first_depth) * size * p.pixel_vectors;
  PixelVectors own(t, per_depth, vectors, size * p.pixel_vectors);
  const int first_pixel = static_cast<int>(blockIdx.x) * kPixels + thread / 32 * kWarpPixels;
#pragma unroll
  for (int n = 0; n < 4; ++n) {  // in the order in which a lane's sums are those of eight neighbours
    const int pixel = min(first_pixel + g / 2 * 8 + n * 2 + g % 2, size - 1);
    own.pixels[n] = worked_out(from + pixel * p.pixel_vectors);
  }
  wait_for_kernel_before();

  uint4 x[kAhead][4];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    own.load_next(x[i]);
  }
  __syncthreads();  // the weights are there
  float sums[kTiles][4][4] = {};
#pragma unroll 1
  for (int first = 0; first < steps; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = first + i;
      if (step < steps) {
        multiply_step(x[i], weights + step * kStepVectors + lane, sums);
        own.load_next(x[i]);
      }
    }
  }

  const int64_t pitch = column_pitch(size);
  float* columns = p.columns + (int64_t{image} * groups_of(p.depth) + group) * kTaps * pitch + first_pixel + t * 8;
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const int tap = 8 * i + g;
    if (tap < kTaps) {
      const auto& own = sums[i / 2];
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        *reinterpret_cast<float4*>(columns + tap * pitch + 2 * n) =
            make_float4(own[n][i % 2 * 2], own[n][i % 2 * 2 + 1], own[n + 1][i % 2 * 2], own[n + 1][i % 2 * 2 + 1]);
      }
    }
  }
#endif
}

// Grid: (tiles of 32 pixels, batch).
__global__ void __launch_bounds__(kSumThreads) occlusion_sum_kernel(const __grid_constant__ OcclusionHead p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, kh = warp % kKernel, image = blockIdx.y;
  const int size = p.height * p.width, pixel = static_cast<int>(blockIdx.x) * kSumPixels + lane;
  const int h = pixel / p.width + kh - kKernel / 2, w = pixel % p.width - kKernel / 2, groups = groups_of(p.depth);
  const bool exists = pixel < size, in_row = exists && 0 <= h && h < p.height;
  auto* parts = reinterpret_cast<float*>(shared_memory());

  let_next_kernel_start();
  const float bias = p.bias[0];
  const int64_t pitch = column_pitch(size), next_tap = pitch + 1;
  const int64_t next_group = kSumParts * kTaps * pitch - kKernel * next_tap;
  const int64_t first_row = (int64_t{image} * groups + warp / kKernel) * kTaps + kh * kKernel;
  const float* column = worked_out(p.columns + first_row * pitch + h * p.width + w);
  bool inside[kKernel];
#pragma unroll
  for (int kw = 0; kw < kKernel; ++kw) {
    inside[kw] = in_row && 0 <= w + kw && w + kw < p.width;
  }
  wait_for_kernel_before();
  float sum = 0.f;
#pragma unroll 1
  for (int group = warp / kKernel; group < groups; group += kSumParts * kSumAhead) {
    float v[kSumAhead][kKernel];
#pragma unroll
    for (int i = 0; i < kSumAhead; ++i) {
#pragma unroll
      for (int kw = 0; kw < kKernel; ++kw) {
        v[i][kw] = inside[kw] && group + i * kSumParts < groups ? *column : 0.f;
        column += next_tap;
      }
      column += next_group;
    }
#pragma unroll
    for (const auto& row : v) {
#pragma unroll
      for (const float value : row) {
        sum += value;
      }
    }
  }
  parts[warp * kSumPixels + lane] = sum;
  __syncthreads();
  if (warp == 0 && exists) {
    float logit = bias;
#pragma unroll
    for (int i = 0; i < kSumWarps; ++i) {
      logit += parts[i * kSumPixels + lane];
    }
    p.map[int64_t{image} * size + pixel] = 1.f / (1.f + expf(-logit));
  }
#endif
}

}  // namespace lpkernels::occlusion
