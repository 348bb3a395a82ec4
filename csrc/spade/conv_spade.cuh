// conv_spade's kernel: a 3x3 convolution and the SPADE behind it, whose input never leaves the registers; several such
// steps in turn for spade_blocks, each the next one's x.
//
//   y   = conv3x3(x, weight) + bias + residual                                 rounded, its statistics are not
//   out = act((y - mean_y) * rstd_y * gamma1 + beta),  [gamma1 | beta] = conv3x3(actv, spade_weight) + spade_bias
//
// Layouts: as conv_act's and spade_conv's, weights as products that rows share (hopper/winograd.h): those of the
// convolution together, those of gamma and beta kind by kind. A block owns 4 rows of 64 pixels and 64 channels, in all
// steps, and first multiplies those of the convolution, then the 128 columns of their gamma and beta: a thread has the
// same pixels and channels in both. Mean and deviation need other blocks, those of the same image and channels: two
// warps wait for them while the second products are made. x of the next step needs the neighbours' rows: the thread
// that asks for its boxes waits for all blocks again, and its weights come meanwhile. So all blocks run at once, and
// each has one tile; when one writes out, all have been to the statistics' meeting, and none reads the x that out
// replaces. Boxes of x and of actv share a ring; a tile of spade_weight takes the places of two of weight's. Bound by
// shared memory.
#pragma once

#include "hopper/conv.cuh"
#include "hopper/grid_barrier.cuh"
#include "hopper/winograd_loop.cuh"
#include "hopper/winograd_narrow_loop.cuh"
#include "spade/conv_spade.h"
#include "spade/spade_conv.cuh"

namespace lpkernels {

// The convolution's epilogue; y is stored where it is asked for.
struct ConvOfSpade : ConvAct {
  template <int Width>
  __device__ static void apply(const Params&, const Row&, const float (&values)[kValues][Width],
                               const HalfBits<Width>& read, float (&v)[Width]) {
    float residual[Width];
    to_floats<Width>(read, residual);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      v[i] = v[i] + values[0][i] + residual[i];
    }
  }

  template <int Width>
  __device__ static void store(const Params& params, const ConvShape&, const Row& row, int output,
                               const float (&v)[Width]) {
    if (params.out != nullptr) {
      store_vector(row.out + output, v);
    }
  }
};

// The warps that fetch the outputs' values go on when the multiplying ones have written their statistics, which do not
// wait for that.
__device__ inline void statistics_written() {
  cutlass::arch::NamedBarrier::arrive(256 + 64, 3);
}
__device__ inline void wait_for_statistics() {
  cutlass::arch::NamedBarrier::sync(256 + 64, 3);
}

struct ConvSpade {
  ConvSpadeSteps steps;
  ConvMaps conv_maps, spade_maps;
  CUtensorMap out;  // in the place of conv_maps.x, for all steps but the first

  static constexpr int kCluster = kSpadeCluster;
  using ConvLoop = WinogradNarrowLoop</*BlockN=*/64, /*Stages=*/12, /*Channels=*/0, kCluster>;
  using SpadeLoop = WinogradLoop</*BlockN=*/128, /*Stages=*/6, /*Channels=*/0, kCluster>;
  using ConvConfig = ConvLoop::Config;
  using SpadeConfig = SpadeLoop::Config;
  using ConvEpilogue = PixelEpilogue<ConvOfSpade, 8, /*Fresh=*/true>;
  using Element = ConvConfig::Element;
  static constexpr int kThreads = ConvConfig::Threads, kMultiplying = 256;

  struct Storage {
    ConvLoop::Storage conv;
    WeightRing<SpadeConfig> spade_ring;
    alignas(8) uint64_t written;  // out, in each step

    __device__ void init() {
      conv.init();
      spade_ring.init();
      reinterpret_cast<EmptyBarrier&>(written).init(kMultiplying);
    }
  };

  // The storage as the SPADE's loop has it.
  struct SpadeStorage {
    using Weight = Element[SpadeConfig::Stages][SpadeConfig::BlockN * SpadeConfig::BlockK];
    static_assert(sizeof(Weight) == sizeof(ConvLoop::Storage::weight));

    decltype(ConvLoop::Storage::x)& x;
    Weight& weight;
    decltype(ConvLoop::Storage::x_ring)& x_ring;
    WeightRing<SpadeConfig>& ring;

    __device__ explicit SpadeStorage(Storage& storage)
        : x(storage.conv.x),
          weight(reinterpret_cast<Weight&>(storage.conv.weight)),
          x_ring(storage.conv.x_ring),
          ring(storage.spade_ring) {}
  };

  static constexpr size_t kConvOwn = sizeof(Storage);
  static constexpr size_t kSpadeOwn = kConvOwn + ConvEpilogue::own_bytes<ConvConfig>();
  static constexpr size_t kBytes = kSpadeOwn + GammaBeta::own_bytes<SpadeConfig>();
  static_assert(kBytes <= kMostSharedBytes);

  // The block's part of either convolution.
  __device__ ConvBlock conv_block(int step) const { return steps.conv_block(ConvConfig::BlockN, blockIdx.x, step); }
  __device__ ConvBlock spade_block(int step) const { return steps.spade_block(SpadeConfig::BlockN, blockIdx.x, step); }

  // What each kind of thread does, in all steps.
  __device__ void load_pixels(Storage& storage, SpadeStorage& spade_storage) const {
    typename ConvLoop::Cursors conv_cursors;
    typename SpadeLoop::Cursors spade_cursors;
    const CUtensorMap* x = &conv_maps.x;
    int step = 0;
    do {
      ConvLoop::load_pixels(*x, steps.conv, storage.conv, conv_block(step), conv_cursors);
      spade_cursors.x = conv_cursors.x;
      SpadeLoop::load_pixels(spade_maps.x, steps.spade, spade_storage, spade_block(step), spade_cursors);
      conv_cursors.x = spade_cursors.x;
      if (!steps.last(step)) {
        cute::prefetch_tma_descriptor(&out);
        reinterpret_cast<EmptyBarrier&>(storage.written).wait(step & 1);
        meet_other_blocks();
        fence_copies();
        x = &out;
      }
    } while (++step < steps.count);
  }

  __device__ void load_weights(Storage& storage, SpadeStorage& spade_storage) const {
    typename ConvLoop::Cursors conv_cursors;
    typename SpadeLoop::Cursors spade_cursors;
    int step = 0;
    do {
      ConvLoop::load_weights(conv_maps.weight, steps.conv, storage.conv, conv_block(step), conv_cursors);
      wait_until_free(storage.conv.ring, conv_cursors.weight);
      SpadeLoop::load_weights(spade_maps.weight, steps.spade, spade_storage, spade_block(step), spade_cursors);
      if (!steps.last(step)) {
        wait_until_free(spade_storage.ring, spade_cursors.weight);
      }
    } while (++step < steps.count);
  }

  // Until nothing of the ring is in use: the other loop's boxes may come.
  template <int Stages, int Consumers>
  __device__ static void wait_until_free(RingBarriers<Stages, 1, Consumers>& ring, StageCursor<Stages> at) {
    for (int i = 0; i < Stages; ++i) {
      ring.wait_empty(at.stage, at.phase);
      at.advance();
    }
  }

  __device__ void fetch_values(int thread, const EpilogueMemory& conv_memory,
                               const EpilogueMemory& spade_memory) const {
    int step = 0;
    do {
      ConvEpilogue::store_values<ConvConfig>(steps.conv_params_of(step), steps.conv, conv_block(step), thread,
                                             conv_memory);
      sync_values();
      wait_for_statistics();
      if (thread == 0) {
        meet_other_blocks();
      }
      cutlass::arch::NamedBarrier::sync(64, 4);
      GammaBeta::store_values<SpadeConfig, /*Fresh=*/true>(steps.spade_params_of(step), steps.spade, spade_block(step),
                                                           thread, spade_memory);
      sync_values();
    } while (++step < steps.count);
  }

  __device__ __forceinline__ void multiply(Storage& storage, SpadeStorage& spade_storage, int thread,
                                           const EpilogueMemory& conv_memory,
                                           const EpilogueMemory& spade_memory) const {
    using F = Fragment<8>;
    const ConvShape &conv = steps.conv, &spade = steps.spade;
    const ConvBlock of_conv = conv_block(0), of_spade = spade_block(0);  // their pixels and outputs, in all steps
    ConvLoop::Cursors conv_cursors;
    SpadeLoop::Cursors spade_cursors;
    int step = 0;
    CUTLASS_PRAGMA_NO_UNROLL
    do {
      GammaBeta::Ahead<SpadeConfig> y;
      {
        const ConvOfSpade::Params params = steps.conv_params_of(step);
        const auto ahead = ConvEpilogue::read_ahead<ConvConfig>(params, conv, of_conv, thread);
        ConvConfig::Accumulator acc;
        ConvLoop::consume(conv, storage.conv, of_conv, thread, acc, conv_cursors);
        sync_values();
        ConvEpilogue::run<ConvConfig>(params, conv, of_conv, acc, thread, conv_memory, ahead);
        statistics_written();
        CUTLASS_PRAGMA_UNROLL
        for (int pair = 0; pair < GammaBeta::pairs<SpadeConfig>(); ++pair) {
          CUTLASS_PRAGMA_UNROLL
          for (int r = 0; r < GammaBeta::rows<SpadeConfig>(); ++r) {
            float v[8];
            CUTLASS_PRAGMA_UNROLL
            for (int i = 0; i < 8; ++i) {
              v[i] = acc(F::index(ConvConfig::BlockN, r / 2, r % 2, pair, i));
            }
            y.x[pair][r] = to_halves(v);
          }
        }
      }
      spade_cursors.x = conv_cursors.x;
      SpadeConfig::Accumulator acc;
      SpadeLoop::consume(spade, spade_storage, of_spade, thread, acc, spade_cursors);
      conv_cursors.x = spade_cursors.x;
      if (steps.last(step)) {
        let_next_kernel_start();
      }
      sync_values();
      GammaBeta::run<SpadeConfig>(steps.spade_params, spade, of_spade, acc, thread, spade_memory, y);
      if (!steps.last(step)) {
        fence_copies();
        reinterpret_cast<EmptyBarrier&>(storage.written).arrive();
      }
    } while (++step < steps.count);
  }

  __device__ __forceinline__ void run(unsigned char* memory) const {
    auto& storage = *reinterpret_cast<Storage*>(memory);
    SpadeStorage spade_storage(storage);
    const EpilogueMemory conv_memory{nullptr, memory + kConvOwn, nullptr};
    const EpilogueMemory spade_memory{nullptr, memory + kSpadeOwn, nullptr};
    if (threadIdx.x == 0) {
      cute::prefetch_tma_descriptor(&conv_maps.x);
      cute::prefetch_tma_descriptor(&conv_maps.weight);
      cute::prefetch_tma_descriptor(&spade_maps.x);
      cute::prefetch_tma_descriptor(&spade_maps.weight);
      storage.init();
      cutlass::arch::fence_barrier_init();
    }
    __syncthreads();
    cute::cluster_sync();
    if (threadIdx.x < 128) {
      cutlass::arch::warpgroup_reg_dealloc<40>();
      if (threadIdx.x == 0) {
        wait_for_kernel_before();
        load_pixels(storage, spade_storage);
      } else if (threadIdx.x == 32) {  // no kernel before this one writes weights: they come while that drains
        load_weights(storage, spade_storage);
      } else if (threadIdx.x >= 64) {
        wait_for_kernel_before();
        fetch_values(threadIdx.x - 64, conv_memory, spade_memory);
      }
    } else {
      cutlass::arch::warpgroup_reg_alloc<232>();
      wait_for_kernel_before();
      multiply(storage, spade_storage, threadIdx.x - 128, conv_memory, spade_memory);
    }
    __syncwarp();
    cute::cluster_sync();  // until then the other block may arrive at this one's barriers
  }
};

static __global__ void __launch_bounds__(ConvSpade::kThreads, 1)
    conv_spade_kernel(const __grid_constant__ ConvSpade p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  p.run(memory);
#endif
}

}  // namespace lpkernels
