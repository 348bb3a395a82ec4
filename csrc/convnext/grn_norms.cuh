// The norms of grn_linear: the blocks of a cluster divide the K columns among themselves, add up the rows of squares
// and tell each other gamma |x| by column and the sums of |x|, through distributed shared memory.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct GrnLinear {
  const __half* x;
  const float *squares, *gamma;
  const __half* weight;
  const float* bias;
  const __half* residual;
  __half* y;
  int pixels, depth, outputs, rows;  // of an image; K; N; of squares
  int splits, tiles;                 // powers of two, their product is the cluster; splits * 384 is K or more
};

// Where a block's shared memory has what, the same in every block of a cluster. At 0 a, and in its and the weights'
// place the sums of the groups of warps. What blocks send each other at the end takes the place of squares that have
// been added up by then, for nobody has got this block's norms before.
struct GrnMemory {
  using Product = HeldProduct<1, 4>;
  static constexpr int kPitch = row_pitch(Product::kDepth);
  static constexpr size_t kWeights = sizeof(__half) * Product::kRows * kPitch;
  static constexpr size_t kBias = kWeights + Product::kWeightBytes > Product::kStagedBytes
                                      ? kWeights + Product::kWeightBytes
                                      : Product::kStagedBytes;
  static constexpr size_t kResidual = kBias + sizeof(float) * Product::kColumns;
  static constexpr size_t kPartial = kResidual + sizeof(__half) * Product::kRows * Product::kColumns;
  static constexpr size_t kReceived = sizeof(float) * Product::kRows * Product::kPitch;
  static constexpr size_t kArrivals =
      kPartial + (kReceived > sizeof(float4) * kThreads ? kReceived : sizeof(float4) * kThreads);
  static constexpr size_t kSums = kArrivals + 2 * sizeof(uint64_t);  // of |x|, by block and warp: 24 at most
  static constexpr size_t kGains = kSums + sizeof(float) * 32;       // gamma |x| of every column

  int quads;    // groups of four columns whose norms a block takes, 96 at most
  int senders;  // warps that have some
  size_t bytes;

  LPKERNELS_HOST_DEVICE GrnMemory(int depth, int cluster) {
    quads = share_of(depth / 4, cluster);
    senders = ceil_div(quads, 32);
    bytes = kGains + sizeof(float4) * quads * cluster;
  }
};

// A thread's part of the K norms that its block takes: four columns of every `slices`-th row of squares.
struct Norms {
  static constexpr int kInFlight = 4;

  int slices, slice, quad;

  __device__ Norms(const GrnLinear& p, int quads)
      : slices(min(min(kThreads / quads, 16), p.rows)),
        slice(static_cast<int>(threadIdx.x) / quads),
        quad(static_cast<int>(threadIdx.x) % quads) {}

  // Sum of its squares, from `squares` on: row 0 of the image, first of the block's columns.
  __device__ float4 sum(const GrnLinear& p, const float* squares, bool exists) const {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    const auto* from = reinterpret_cast<const float4*>(squares) + quad;
    const int end = exists && slice < slices ? p.rows : 0;
#pragma unroll 1
    for (int row = slice; row < end; row += kInFlight * slices) {
      float4 values[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        values[i] = make_float4(0.f, 0.f, 0.f, 0.f);
        if (row + i * slices < end) {
          values[i] = from[int64_t{row + i * slices} * (p.depth / 4)];
        }
      }
      sum = sum + ((values[0] + values[1]) + (values[2] + values[3]));
    }
    return sum;
  }

  // Adds up the slices' sums and tells the cluster gamma |x| by column and the sum of |x| by warp.
  __device__ void share(const GrnMemory& at, unsigned char* memory, int own, int cluster, float4 gamma, bool exists,
                        uint64_t* arrivals) const {
    const int thread = threadIdx.x;
    if (thread / 32 >= at.senders) {
      return;
    }
    float of_thread = 0.f;
    if (thread < at.quads && exists) {
      const auto* partial = reinterpret_cast<const float4*>(memory + GrnMemory::kPartial) + thread;
      float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
      for (int i = 0; i < slices; ++i) {
        sum = sum + partial[i * at.quads];
      }
      const float4 norm = make_float4(approximate_root(sum.x), approximate_root(sum.y), approximate_root(sum.z),
                                      approximate_root(sum.w));
      of_thread = (norm.x + norm.y) + (norm.z + norm.w);
      const float4 gain = make_float4(gamma.x * norm.x, gamma.y * norm.y, gamma.z * norm.z, gamma.w * norm.w);
      auto* gains = reinterpret_cast<float4*>(memory + GrnMemory::kGains) + own * at.quads + thread;
#pragma unroll 1
      for (int rank = 0; rank < cluster; ++rank) {
        send(gains, gain, rank, arrivals);
      }
    }
    of_thread = sum_of_lanes<32>(of_thread);
    if (thread % 32 < cluster) {
      send(reinterpret_cast<float*>(memory + GrnMemory::kSums) + own * at.senders + thread / 32, of_thread, thread % 32,
           arrivals);
    }
  }
};

// 1 / (mean_K |x| + eps), from the sums of all blocks and warps.
__device__ inline float inverse_mean(const float* sums, int count, int depth) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float sum = sum_of_lanes<32>(lane < count ? sums[lane] : 0.f);
  return approximate_reciprocal(fmaf(sum, approximate_reciprocal(static_cast<float>(depth)), kEpsilon));
}

}  // namespace lpkernels::convnext
