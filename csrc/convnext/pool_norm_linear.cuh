// The end of ConvNeXt, activations in half precision, all else in float:
//
//   y = (p - mean_C p) / sqrt(var_C p + 1e-6) W^T + bias,  p = mean_HW x
//
// Layouts: x (B, S, C), S = H * W, W (N, C), y (B, N). A warp owns one number of y: its row of W is in registers before
// the wait for the kernel ahead. The blocks of a cluster have the same image: each takes the mean over space of an
// eighth of the channels and tells the others through distributed shared memory.
//
// Published 64 x 768 -> 328: 24 blocks of 16 warps; bytes a block: 49 KB of weights before the wait, 12 KB of x after
// it. By count, in clocks after the wait: x 800, sums and their exchange 600, norm and product 400: 1 microsecond.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct PoolNormLinear {
  const __half* x;
  const float *weight, *bias;
  float* y;
  int pixels, channels, outputs;
};

struct PoolMemory {
  static constexpr int kCluster = 8;
  static constexpr int kQuads = 6;  // of W that a lane holds
  static constexpr int kMostChannels = 4 * 32 * kQuads;
  static constexpr int kSlices = 16;                                 // of the pixels, at most
  static constexpr size_t kPartial = sizeof(float) * kMostChannels;  // the means are at 0
  static constexpr size_t kArrivals = kPartial + sizeof(float) * kSlices * kMostChannels / kCluster;
  static constexpr size_t kBytes = kArrivals + 2 * sizeof(uint64_t);
};

// Sums of eight channels over every `step`-th pixel: every `stride`-th vector from `from` on.
__device__ inline void sum_pixels(const uint4* from, int first, int end, int step, int stride, float (&sums)[8]) {
  constexpr int kInFlight = 4;
#pragma unroll
  for (float& sum : sums) {
    sum = 0.f;
  }
#pragma unroll 1
  for (int pixel = first; pixel < end; pixel += kInFlight * step) {
    uint4 values[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      values[i] = make_uint4(0, 0, 0, 0);
      if (pixel + i * step < end) {
        values[i] = from[int64_t{pixel + i * step} * stride];
      }
    }
#pragma unroll
    for (const uint4& v : values) {
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = floats(words[j]);
        sums[2 * j] += pair.x;
        sums[2 * j + 1] += pair.y;
      }
    }
  }
}

// Sum of the products of a warp's row of W and the normalised means.
__device__ inline float normed_product(const float4 (&weights)[PoolMemory::kQuads], const float* means, int channels) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float inverse_count = approximate_reciprocal(static_cast<float>(channels));
  float4 v[PoolMemory::kQuads];
  float sum = 0.f, squares = 0.f, product = 0.f;
#pragma unroll
  for (int i = 0; i < PoolMemory::kQuads; ++i) {
    const int channel = (lane + 32 * i) * 4;
    v[i] = channel < channels ? *reinterpret_cast<const float4*>(means + channel) : make_float4(0.f, 0.f, 0.f, 0.f);
    sum += (v[i].x + v[i].y) + (v[i].z + v[i].w);
  }
  const float mean = sum_of_lanes<32>(sum) * inverse_count;
#pragma unroll
  for (int i = 0; i < PoolMemory::kQuads; ++i) {
    if ((lane + 32 * i) * 4 < channels) {
      const float x = v[i].x - mean, y = v[i].y - mean, z = v[i].z - mean, w = v[i].w - mean;
      squares += fmaf(x, x, y * y) + fmaf(z, z, w * w);
      product += fmaf(weights[i].x, x, weights[i].y * y) + fmaf(weights[i].z, z, weights[i].w * w);
    }
  }
  return sum_of_lanes<32>(product) * rsqrtf(fmaf(sum_of_lanes<32>(squares), inverse_count, kEpsilon));
}

// Grid: (outputs by 16, in whole clusters; images), clusters of 8 along the first.
static __global__ void __launch_bounds__(kThreads, 2)
    pool_norm_linear_kernel(const __grid_constant__ PoolNormLinear p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using Memory = PoolMemory;
  const int thread = threadIdx.x, lane = thread % 32, rank = static_cast<int>(blockIdx.x % Memory::kCluster);
  const int n = static_cast<int>(blockIdx.x) * kWarps + thread / 32, image = blockIdx.y;
  unsigned char* memory = shared_memory();
  auto* means = reinterpret_cast<float*>(memory);
  auto* partial = reinterpret_cast<float*>(memory + Memory::kPartial);
  auto* arrivals = reinterpret_cast<uint64_t*>(memory + Memory::kArrivals);

  let_next_kernel_start();
  float4 weights[Memory::kQuads];
#pragma unroll
  for (int i = 0; i < Memory::kQuads; ++i) {
    const int channel = (lane + 32 * i) * 4;
    weights[i] = n < p.outputs && channel < p.channels ? load_constant(p.weight + int64_t{n} * p.channels + channel)
                                                       : make_float4(0.f, 0.f, 0.f, 0.f);
  }
  const float bias = n < p.outputs ? p.bias[n] : 0.f;
  if (thread == 0) {
    init_arrivals(arrivals);
    expect_bytes(arrivals, static_cast<int>(sizeof(float)) * p.channels);
  }
  arrive_at_cluster();
  const int all = p.channels / 8, vectors = share_of(all, Memory::kCluster), first = rank * vectors;
  const int slices = min(min(kThreads / vectors, Memory::kSlices), p.pixels);
  const int slice = thread / vectors, vector = thread % vectors;
  const auto* from = reinterpret_cast<const uint4*>(p.x) + int64_t{image} * p.pixels * all + first + vector;
  wait_for_kernel_before();

  if (slice < slices && first + vector < all) {
    float sums[8];
    sum_pixels(from, slice, p.pixels, slices, all, sums);
    auto* to = reinterpret_cast<float4*>(partial + (slice * vectors + vector) * 8);
    to[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
    to[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
  }
  __syncthreads();
  wait_for_cluster();  // all of its blocks run: their memory may be written
  if (thread < vectors * 8 && first * 8 + thread < p.channels) {
    float sum = 0.f;
#pragma unroll 8
    for (int i = 0; i < slices; ++i) {
      sum += partial[i * vectors * 8 + thread];
    }
    sum *= approximate_reciprocal(static_cast<float>(p.pixels));
#pragma unroll 1
    for (int to = 0; to < Memory::kCluster; ++to) {
      send(means + first * 8 + thread, sum, to, arrivals);
    }
  }
  wait_for_bytes(arrivals, 0);
  const float product = normed_product(weights, means, p.channels);
  if (lane == 0 && n < p.outputs) {
    p.y[int64_t{image} * p.outputs + n] = product + bias;
  }
#endif
}

inline int blocks_of(const PoolNormLinear& p) {
  return ceil_div(p.outputs, kWarps * PoolMemory::kCluster) * PoolMemory::kCluster;
}

}  // namespace lpkernels::convnext
