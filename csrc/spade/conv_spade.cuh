// conv_spade's kernel: a 3x3 convolution and the SPADE behind it, whose input never leaves the registers.
//
//   y   = conv3x3(x, weight) + bias + residual                                 rounded, its statistics are not
//   out = act((y - mean_y) * rstd_y * gamma1 + beta),  [gamma1 | beta] = conv3x3(actv, spade_weight) + spade_bias
//
// Layouts: as conv_act's and spade_conv's. A block owns 2 rows of 64 pixels and 128 channels, and first multiplies
// those of the convolution, then the 256 columns of their gamma and beta: a thread has the same pixels and channels in
// both. Only mean and deviation need other blocks, those of the same image and channels: two warps wait for them while
// the second products are made. So all blocks run at once, and each has one tile. Boxes of x and of actv share a ring;
// a box of spade_weight takes the places of two of weight's. Bound by the tensor cores.
#pragma once

#include "conv/conv_act.cuh"
#include "hopper/grid_barrier.cuh"
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

struct ConvSpade {
  ConvMaps conv_maps, spade_maps;
  ConvShape conv, spade;
  ConvOfSpade::Params conv_params;
  SpadeParams spade_params;  // statistics: conv_params.partials; no x

  static constexpr int kRows = 2, kWidth = 64;  // of a tile
  using ConvLoop = HaloLoop<kRows, kWidth, /*BlockN=*/128, /*TapsH=*/3, /*XStages=*/3, /*WeightStages=*/6>;
  using SpadeLoop = HaloLoop<kRows, kWidth, /*BlockN=*/256, /*TapsH=*/3, /*XStages=*/3, /*WeightStages=*/3>;
  using ConvConfig = ConvLoop::Config;
  using SpadeConfig = SpadeLoop::Config;
  using ConvEpilogue = PixelEpilogue<ConvOfSpade, 8>;
  using Element = ConvConfig::Element;
  static constexpr int kThreads = ConvConfig::Threads;

  struct Storage {
    ConvLoop::Storage conv;
    RingBarriers<SpadeConfig::Stages, 1> spade_ring;

    __device__ void init() {
      conv.init();
      spade_ring.init();
    }
  };

  // The storage as the SPADE's loop has it.
  struct SpadeStorage {
    using Weight = Element[SpadeConfig::Stages][SpadeConfig::BlockN * SpadeConfig::BlockK];
    static_assert(sizeof(Weight) == sizeof(ConvLoop::Storage::weight));

    decltype(ConvLoop::Storage::x)& x;
    Weight& weight;
    decltype(ConvLoop::Storage::x_ring)& x_ring;
    RingBarriers<SpadeConfig::Stages, 1>& ring;

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
  __device__ ConvBlock conv_block() const { return block_of(conv, ConvConfig::BlockN, blockIdx.x, 0); }
  __device__ ConvBlock spade_block() const { return block_of(spade, SpadeConfig::BlockN, blockIdx.x, 0); }
};

// The warps that fetch the outputs' values go on when the multiplying ones have written their statistics, which do not
// wait for that.
__device__ inline void statistics_written() {
  cutlass::arch::NamedBarrier::arrive(256 + 64, 3);
}
__device__ inline void wait_for_statistics() {
  cutlass::arch::NamedBarrier::sync(256 + 64, 3);
}

static __global__ void __launch_bounds__(ConvSpade::kThreads, 1)
    conv_spade_kernel(const __grid_constant__ ConvSpade p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using K = ConvSpade;
  using F = Fragment<8>;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& storage = *reinterpret_cast<K::Storage*>(memory);
  K::SpadeStorage spade_storage(storage);
  const EpilogueMemory conv_memory{nullptr, memory + K::kConvOwn, nullptr};
  const EpilogueMemory spade_memory{nullptr, memory + K::kSpadeOwn, nullptr};
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&p.conv_maps.x);
    cute::prefetch_tma_descriptor(&p.conv_maps.weight);
    cute::prefetch_tma_descriptor(&p.spade_maps.x);
    cute::prefetch_tma_descriptor(&p.spade_maps.weight);
    storage.init();
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  const ConvBlock conv_block = p.conv_block(), spade_block = p.spade_block();
  K::ConvLoop::Cursors conv_cursors;
  K::SpadeLoop::Cursors spade_cursors;
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<56>();
    if (threadIdx.x == 0) {
      wait_for_kernel_before();
      K::ConvLoop::load_pixels(p.conv_maps.x, p.conv, storage.conv, conv_block, conv_cursors);
      spade_cursors.x = conv_cursors.x;
      K::SpadeLoop::load_pixels(p.spade_maps.x, p.spade, spade_storage, spade_block, spade_cursors);
    } else if (threadIdx.x == 32) {  // no kernel before this one writes weights: they come while that drains
      auto& at = conv_cursors.weight;
      K::ConvLoop::load_weights(p.conv_maps.weight, p.conv, storage.conv, conv_block, conv_cursors);
      for (int i = 0; i < K::ConvConfig::Stages; ++i) {
        storage.conv.ring.wait_empty(at.stage, at.phase);
        at.advance();
      }
      K::SpadeLoop::load_weights(p.spade_maps.weight, p.spade, spade_storage, spade_block, spade_cursors);
    } else if (threadIdx.x >= 64) {
      const int thread = threadIdx.x - 64;
      wait_for_kernel_before();
      K::ConvEpilogue::store_values<K::ConvConfig>(p.conv_params, p.conv, conv_block, thread, conv_memory);
      sync_values();
      wait_for_statistics();
      if (thread == 0) {
        meet_other_blocks();
      }
      cutlass::arch::NamedBarrier::sync(64, 4);
      GammaBeta::store_values<K::SpadeConfig, /*Fresh=*/true>(p.spade_params, p.spade, spade_block, thread,
                                                              spade_memory);
      sync_values();
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<224>();
    const int thread = threadIdx.x - 128;
    wait_for_kernel_before();
    GammaBeta::Ahead<K::SpadeConfig> y;
    {
      const auto ahead = K::ConvEpilogue::read_ahead<K::ConvConfig>(p.conv_params, p.conv, conv_block, thread);
      K::ConvConfig::Accumulator acc;
      K::ConvLoop::consume(p.conv, storage.conv, conv_block, thread, acc, conv_cursors);
      sync_values();
      K::ConvEpilogue::run<K::ConvConfig>(p.conv_params, p.conv, conv_block, acc, thread, conv_memory, ahead);
      statistics_written();
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < GammaBeta::pairs<K::SpadeConfig>(); ++pair) {
        CUTLASS_PRAGMA_UNROLL
        for (int r = 0; r < GammaBeta::rows<K::SpadeConfig>(); ++r) {
          float v[8];
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < 8; ++i) {
            v[i] = acc(F::index(K::ConvConfig::BlockN, r / 2, r % 2, pair, i));
          }
          y.x[pair][r] = to_halves(v);
        }
      }
    }
    spade_cursors.x = conv_cursors.x;
    K::SpadeConfig::Accumulator acc;
    K::SpadeLoop::consume(p.spade, spade_storage, spade_block, thread, acc, spade_cursors);
    let_next_kernel_start();
    sync_values();
    GammaBeta::run<K::SpadeConfig>(p.spade_params, p.spade, spade_block, acc, thread, spade_memory, y);
  }
#endif
}

}  // namespace lpkernels
