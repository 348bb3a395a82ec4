// What happens to the accumulators: vectors of neighbouring outputs of one pixel are handed to an operation, straight
// from the registers, or, where the blocks of a cluster share a tile's sum, after adding their parts up in rank order.
#pragma once

#include "hopper/conv.cuh"

#include <cuda_fp16.h>

namespace lpkernels::hopper {

// Calls visit(row, output, v) for every vector v of Width outputs that the thread holds; what visit leaves in v goes
// back into the accumulators.
template <class Config, int Width, class Accumulator, class Visit>
__device__ void for_each_vector(Accumulator& acc, int thread, Visit&& visit) {
  using F = Fragment<Width>;
  CUTLASS_PRAGMA_UNROLL
  for (int tile_m = 0; tile_m < Config::BlockM / 128; ++tile_m) {
    CUTLASS_PRAGMA_UNROLL
    for (int j = 0; j < Config::BlockN / F::kGroup; ++j) {
      CUTLASS_PRAGMA_UNROLL
      for (int s = 0; s < 2; ++s) {
        float v[Width];
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < Width; ++i) {
          v[i] = acc(F::index(Config::BlockN, tile_m, s, j, i));
        }
        visit(F::row(thread, tile_m, s), F::output(thread, j), v);
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < Width; ++i) {
          acc(F::index(Config::BlockN, tile_m, s, j, i)) = v[i];
        }
      }
    }
  }
}

// The accumulators as rows of BlockN floats in shared memory, columns in the weight's own order.
template <class Config>
struct Staged {
  static constexpr int kPitch = Config::BlockN + 8;  // 8 mod 32 banks: the 8-byte stores of a warp never collide
  static constexpr size_t kBytes = sizeof(float) * Config::BlockM * kPitch;

  template <class Accumulator>
  __device__ static void store(const Accumulator& acc, int thread, float* staged) {
    CUTLASS_PRAGMA_UNROLL
    for (int tile_m = 0; tile_m < Config::BlockM / 128; ++tile_m) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Config::BlockN / 2; i += 2) {
        const int row = tile_m * 128 + thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2);
        const int column = 8 * (i / 4) + 2 * (thread % 4);
        const int at = i + tile_m * (Config::BlockN / 2);
        *reinterpret_cast<float2*>(staged + row * kPitch + column) = make_float2(acc(at), acc(at + 1));
      }
    }
  }
};

__device__ inline float4 load_from_rank(const float* address, int rank) {
  uint32_t local = static_cast<uint32_t>(__cvta_generic_to_shared(address)), remote = 0;
  float4 v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(remote)
               : "memory");
  return v;
}

// Eight columns of one row, summed over the cluster in rank order.
__device__ inline void sum_over_cluster(const float* address, int split, float (&v)[8]) {
  CUTLASS_PRAGMA_UNROLL
  for (float& value : v) {
    value = 0.f;
  }
  for (int rank = 0; rank < split; ++rank) {
    const float4 a = load_from_rank(address, rank), b = load_from_rank(address + 4, rank);
    v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w;
    v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
  }
}

// Stages the partial sums, lets visit(staged) read those of the whole cluster, and waits until every block has.
template <class Config, class Accumulator, class Visit>
__device__ void with_cluster_sums(const Accumulator& acc, int thread, unsigned char* memory, Visit&& visit) {
  float* staged = reinterpret_cast<float*>(memory);
  sync_consumers();  // until then the other warpgroup may read the stages that the sums overwrite
  Staged<Config>::store(acc, thread, staged);
  cute::cluster_arrive();
  cute::cluster_wait();
  visit(staged);
  cute::cluster_arrive();
  cute::cluster_wait();
}

// An epilogue is a type with
//   Params        what the kernel is launched with
//   kClusters     whether it can add up the parts of a cluster
//   kManyTiles    whether it leaves the stages alone (but for clusters), so that a block may go on to another tile
//   staged_bytes  what it stages over the stages, own_bytes what it needs beside them
//   run           called by the two multiplying warpgroups with their accumulators
//
// This one treats every pixel alike: Op::apply(params, shape, block, pixel, output, v) on each vector of outputs, then
// Op::finish on what that left in the accumulators.
template <class Op, int Width>
struct PixelEpilogue {
  using Params = typename Op::Params;
  static constexpr bool kClusters = Width == 8, kManyTiles = true;

  template <class Config>
  static constexpr size_t staged_bytes() {
    return kClusters ? Staged<Config>::kBytes : 0;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return Op::template own_bytes<Config>();
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory) {
    const auto apply = [&](int row, int output, float (&v)[Width]) {
      const Pixel at = pixel_at(shape, block, row);
      if (inside(shape, at) && block.n + output < shape.outputs) {
        Op::apply(params, shape, block, at, block.n + output, v);
      } else {
        CUTLASS_PRAGMA_UNROLL
        for (float& value : v) {
          value = 0.f;
        }
      }
    };
    if constexpr (kClusters) {
      if (shape.split > 1) {
        with_cluster_sums<Config>(acc, thread, memory.stages, [&](const float* staged) {
          constexpr int kVectors = Config::BlockN / 8;
          const int rank = static_cast<int>(cute::block_rank_in_cluster());
          for (int item = rank * 256 + thread; item < Config::BlockM * kVectors; item += shape.split * 256) {
            float v[8];
            const int row = item / kVectors, output = item % kVectors * 8;
            sum_over_cluster(staged + row * Staged<Config>::kPitch + output, shape.split, v);
            apply(row, output, v);
          }
        });
        return;
      }
    }
    for_each_vector<Config, Width>(acc, thread, apply);
    Op::template finish<Config, Width>(params, shape, block, acc, thread, memory.own);
  }
};

// Width halves at `address`, as floats; the address is a multiple of 2 * Width bytes.
template <int Width>
__device__ void load_vector(const __half* address, float (&v)[Width]) {
  using Bits = std::conditional_t<Width == 8, uint4, uint2>;
  const Bits bits = __ldg(reinterpret_cast<const Bits*>(address));
  const auto* pairs = reinterpret_cast<const __half2*>(&bits);
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Width / 2; ++i) {
    const float2 pair = __half22float2(pairs[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

template <int Width>
__device__ void store_vector(__half* address, const float (&v)[Width]) {
  using Bits = std::conditional_t<Width == 8, uint4, uint2>;
  Bits bits;
  auto* pairs = reinterpret_cast<__half2*>(&bits);
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Width / 2; ++i) {
    pairs[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
  }
  *reinterpret_cast<Bits*>(address) = bits;
}

template <int Width>
__device__ void load_vector(const float* address, float (&v)[Width]) {
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Width; i += 4) {
    const float4 quad = __ldg(reinterpret_cast<const float4*>(address + i));
    v[i] = quad.x, v[i + 1] = quad.y, v[i + 2] = quad.z, v[i + 3] = quad.w;
  }
}

__device__ inline float leaky_relu(float value, float negative_slope) {
  return value > 0.f ? value : value * negative_slope;
}

}  // namespace lpkernels::hopper
