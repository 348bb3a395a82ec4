// The norms of grn_linear: the blocks of a cluster divide the K columns among themselves, add up the rows of squares
// and tell gamma |x| by column to those with that piece of K, the sums of |x| to all, through distributed shared
// memory.
#pragma once

#include "convnext/split_sums.cuh"

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

// Where a block's shared memory has what, the same in every block of a cluster. What blocks send each other at the end
// takes the place of squares that have been added up by then, for nobody has got this block's norms before.
template <class P>
struct GrnMemory : SplitMemory<P> {
  using Product = P;
  using Split = SplitMemory<Product>;
  static constexpr size_t kResidual = Split::kEnd;
  static constexpr size_t kPartial = kResidual + sizeof(__half) * Product::kRows * Product::kColumns;
  static constexpr size_t kSums =  // of |x|, by block and warp: 24 at most
      kPartial +
      (Split::kReceivedBytes > sizeof(float4) * kThreads ? Split::kReceivedBytes : sizeof(float4) * kThreads);
  static constexpr size_t kGains = kSums + sizeof(float) * 32;  // gamma |x| of the piece's columns
  static constexpr size_t kBytes = kGains + sizeof(float) * Product::kDepth;

  int quads;    // groups of four columns whose norms a block takes, 96 at most
  int senders;  // warps that have some

  LPKERNELS_HOST_DEVICE GrnMemory(int depth, int cluster) {
    quads = share_of(depth / 4, cluster);
    senders = ceil_div(quads, 32);
  }
};

// A thread's part of the K norms that its block takes: four columns of every `slices`-th row of squares.
struct Norms {
  static constexpr int kInFlight = 4;

  int thread, slices, slice, quad;
  const float4* from;
  bool exists;  // there are such columns
  int rows;     // of its own and of other slices from its first on

  // first_k: of the block.
  __device__ Norms(const GrnLinear& p, int quads, int image, int first_k, int thread)
      : thread(thread), slices(min(min(kThreads / quads, 16), p.rows)), slice(thread / quads), quad(thread % quads) {
    const int64_t first_row = int64_t{image} * p.rows + slice;
    from = reinterpret_cast<const float4*>(p.squares + first_row * p.depth + first_k) + quad;
    exists = first_k + 4 * quad < p.depth;
    rows = slice < slices && exists ? p.rows - slice : 0;
  }

  // Asks for its next rows, `left` of its own and of other slices' from `next` on.
  __device__ void load(const GrnLinear& p, const float4* next, int left, float4 (&values)[kInFlight]) const {
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      values[i] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (i * slices < left) {
        values[i] = next[i * slices * (p.depth / 4)];
      }
    }
  }

  // Sum of its rows, the first of which have been asked for.
  __device__ float4 sum(const GrnLinear& p, float4 (&values)[kInFlight]) const {
    float4 sum = (values[0] + values[1]) + (values[2] + values[3]);
    const float4* next = from;
#pragma unroll 1
    for (int left = rows - kInFlight * slices; left > 0; left -= kInFlight * slices) {
      next += kInFlight * slices * (p.depth / 4);
      load(p, next, left, values);
      sum = sum + ((values[0] + values[1]) + (values[2] + values[3]));
    }
    return sum;
  }

  // Adds up the slices' sums and tells gamma |x| by column and the sum of |x| by warp. k: the first of the four
  // columns; base: the hardware's rank of the cluster's first.
  template <class Memory>
  __device__ void share(const GrnLinear& p, const Memory& at, unsigned char* memory, int k, int own, int base,
                        float4 gamma, uint64_t* arrivals) const {
    if (thread / 32 >= at.senders) {
      return;
    }
    float of_thread = 0.f;
    if (thread < at.quads && exists) {
      const auto* partial = reinterpret_cast<const float4*>(memory + Memory::kPartial) + thread;
      float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 8
      for (int i = 0; i < slices; ++i) {
        sum = sum + partial[i * at.quads];
      }
      const float4 norm = make_float4(approximate_root(sum.x), approximate_root(sum.y), approximate_root(sum.z),
                                      approximate_root(sum.w));
      of_thread = (norm.x + norm.y) + (norm.z + norm.w);
      const float4 gain = make_float4(gamma.x * norm.x, gamma.y * norm.y, gamma.z * norm.z, gamma.w * norm.w);
      const int part = k / Memory::Product::kDepth;
      auto* gains = reinterpret_cast<float*>(memory + Memory::kGains) + k - part * Memory::Product::kDepth;
#pragma unroll 1
      for (int rank = part; rank < p.splits * p.tiles; rank += p.splits) {
        send(reinterpret_cast<float4*>(gains), gain, base + rank, arrivals);
      }
    }
    of_thread = sum_of_lanes<32>(of_thread);
    if (thread % 32 < p.splits * p.tiles) {
      send(reinterpret_cast<float*>(memory + Memory::kSums) + own * at.senders + thread / 32, of_thread,
           base + thread % 32, arrivals);
    }
  }
};

// 1 / (mean_K |x| + eps), from the sums of all blocks and warps.
__device__ inline float inverse_mean(const float* sums, int count, int depth, int lane) {
  const float sum = sum_of_lanes<32>(lane < count ? sums[lane] : 0.f);
  return approximate_reciprocal(fmaf(sum, approximate_reciprocal(static_cast<float>(depth)), kEpsilon));
}

}  // namespace lpkernels::convnext
