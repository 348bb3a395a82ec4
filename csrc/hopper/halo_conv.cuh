// A convolution that fills shared memory less: the rows of x are loaded with their halo, once for all taps of a column.
//
//   acc[m, n] = sum over taps t and channels c of x[pixel(m) + offset(t), c] * weight[n, t, c]
//
// As hopper/conv.cuh, but a block's BlockM pixels are TileH whole rows of TileW, and one TMA box brings TileH + TapsH -
// 1 rows of 64 channels: tap kh reads them kh rows further on. A row is TileW * 128 bytes, a multiple of the 1024 bytes
// after which the swizzle repeats, so a shifted tile is a tile like any other. Weights come box by box in a ring of
// their own. For blocks of few outputs, or whose tile is many rows, where conv.cuh waits for its boxes.
#pragma once

#include "hopper/conv.cuh"

namespace lpkernels::hopper {

template <int TileH_, int TileW_, int BlockN_, int TapsH_, int XStages_, int WeightStages_, int Channels_ = 0>
struct HaloConfig : ConvConfig<TileH_ * TileW_, BlockN_, WeightStages_, Channels_> {
  static constexpr int TileH = TileH_, TileW = TileW_, TapsH = TapsH_, XStages = XStages_;
  static constexpr int HaloRows = (TileH + TapsH - 1) * TileW;  // pixels of an x box
  static_assert(TileW % 8 == 0, "a row must be a whole number of swizzle atoms");
};

template <class Config>
struct HaloStorage {
  alignas(1024) typename Config::Element x[Config::XStages][Config::HaloRows * Config::BlockK];
  alignas(1024) typename Config::Element weight[Config::Stages][Config::BlockN * Config::BlockK];
  alignas(8) uint64_t x_full[Config::XStages];
  alignas(8) uint64_t x_empty[Config::XStages];
  alignas(8) uint64_t full[Config::Stages];
  alignas(8) uint64_t empty[Config::Stages];
};

// The boxes of x in the order columns of taps, then channels; with each, the weights of its TapsH taps.
template <class Config>
__device__ void produce_halo(const ConvMaps& maps, const ConvShape& shape, HaloStorage<Config>& storage,
                             const ConvBlock& block, StageCursor& x_cursor, StageCursor& cursor) {
  constexpr uint64_t kEvictNormal = 0x1000000000000000;
  constexpr int kBoxBytes = Config::BlockK * sizeof(typename Config::Element);
  for (int column = 0; column < shape.taps_d * shape.taps_w; ++column) {
    const int kd = column / shape.taps_w, kw = column % shape.taps_w;
    for (int box = 0; box < shape.boxes(); ++box) {
      uint64_t& x_full = storage.x_full[x_cursor.stage];
      reinterpret_cast<EmptyBarrier&>(storage.x_empty[x_cursor.stage]).wait(x_cursor.phase ^ 1);
      reinterpret_cast<FullBarrier&>(x_full).arrive_and_expect_tx(Config::HaloRows * kBoxBytes);
      cute::SM90_TMA_LOAD_5D::copy(&maps.x, &x_full, kEvictNormal, storage.x[x_cursor.stage], box * Config::BlockK,
                                   block.w + kw - shape.taps_w / 2, block.h - Config::TapsH / 2,
                                   block.d + kd - shape.taps_d / 2, block.b);
      x_cursor.advance<Config::XStages>();
      for (int kh = 0; kh < Config::TapsH; ++kh) {
        uint64_t& full = storage.full[cursor.stage];
        reinterpret_cast<EmptyBarrier&>(storage.empty[cursor.stage]).wait(cursor.phase ^ 1);
        reinterpret_cast<FullBarrier&>(full).arrive_and_expect_tx(Config::BlockN * kBoxBytes);
        const KStep k{.box = box, .d = kd, .h = kh, .w = kw};
        const auto at = weight_origin(shape, block, k);
        cute::SM90_TMA_LOAD_5D::copy(&maps.weight, &full, kEvictNormal, storage.weight[cursor.stage], at[0], at[1],
                                     at[2], at[3], at[4]);
        cursor.advance<Config::Stages>();
      }
    }
  }
}

// Issues the first Steps products of tap kh on an x box, without waiting for them.
template <class Config, int Steps, class Accumulator>
__device__ void issue_tap(HaloStorage<Config>& storage, int x_stage, StageCursor cursor, int kh, int thread,
                          typename Config::Mma& mma, Accumulator& acc) {
  using namespace cute;
  const auto x = make_tensor(make_smem_ptr(storage.x[x_stage] + kh * Config::TileW * Config::BlockK),
                             typename Config::template BoxLayout<Config::BlockM>{});
  const auto weight =
      make_tensor(make_smem_ptr(storage.weight[cursor.stage]), typename Config::template BoxLayout<Config::BlockN>{});
  const auto thread_mma = mma.get_thread_slice(thread);
  const auto fragment_x = thread_mma.partition_fragment_A(x);
  const auto fragment_weight = thread_mma.partition_fragment_B(weight);
  reinterpret_cast<FullBarrier&>(storage.full[cursor.stage]).wait(cursor.phase);
  warpgroup_fence_operand(acc);
  warpgroup_arrive();
  CUTLASS_PRAGMA_UNROLL
  for (int k = 0; k < Steps; ++k) {
    cute::gemm(mma, fragment_x(_, _, k), fragment_weight(_, _, k), acc);
  }
  warpgroup_commit_batch();
}

template <class Config, class Accumulator>
__device__ void consume_halo(const ConvShape& shape, HaloStorage<Config>& storage, int thread, Accumulator& acc,
                             StageCursor& x_cursor, StageCursor& cursor) {
  using namespace cute;
  typename Config::Mma mma;
  mma.accumulate_ = GMMA::ScaleOut::One;
  clear(acc);
  int previous = -1, previous_x = -1;  // what the products in flight read
  const auto arrive = [](uint64_t& barrier) {
    if (threadIdx.x % 128 == 0) {
      reinterpret_cast<EmptyBarrier&>(barrier).arrive();
    }
  };
  const auto box = [&](auto steps) {
    reinterpret_cast<FullBarrier&>(storage.x_full[x_cursor.stage]).wait(x_cursor.phase);
    CUTLASS_PRAGMA_UNROLL
    for (int kh = 0; kh < Config::TapsH; ++kh) {
      issue_tap<Config, decltype(steps)::value>(storage, x_cursor.stage, cursor, kh, thread, mma, acc);
      // One tap's products stay in flight: those of the tap before are done, what they read can be filled again.
      warpgroup_wait<1>();
      warpgroup_fence_operand(acc);
      if (previous >= 0) {
        arrive(storage.empty[previous]);
      }
      if (kh == 0 && previous_x >= 0) {
        arrive(storage.x_empty[previous_x]);
      }
      previous = cursor.stage;
      cursor.advance<Config::Stages>();
    }
    previous_x = x_cursor.stage;
    x_cursor.advance<Config::XStages>();
  };
  constexpr auto kAllSteps = Int<Config::BlockK / Config::StepK>{};
  const int columns = shape.taps_d * shape.taps_w;
  if constexpr (Config::Channels > 0) {
    CUTLASS_PRAGMA_NO_UNROLL
    for (int column = 0; column < columns; ++column) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < Config::FullBoxes; ++i) {
        box(kAllSteps);
      }
      if constexpr (Config::TailSteps > 0) {
        box(Int<Config::TailSteps>{});
      }
    }
  } else {
    CUTLASS_PRAGMA_NO_UNROLL
    for (int i = 0; i < columns * shape.boxes(); ++i) {
      box(kAllSteps);
    }
  }
  warpgroup_wait<0>();
  warpgroup_fence_operand(acc);
  arrive(storage.empty[previous]);
  arrive(storage.x_empty[previous_x]);
}

template <class Config, class Epilogue>
__global__ void __launch_bounds__(Config::Threads, 1)
    halo_conv_kernel(const __grid_constant__ ConvMaps maps, const ConvShape shape,
                     const typename Epilogue::Params params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace cute;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& storage = *reinterpret_cast<HaloStorage<Config>*>(memory);
  const int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Config::Stages; ++stage) {
      reinterpret_cast<FullBarrier&>(storage.full[stage]).init(1);
      reinterpret_cast<EmptyBarrier&>(storage.empty[stage]).init(2);  // one arrival per multiplying warpgroup
    }
    for (int stage = 0; stage < Config::XStages; ++stage) {
      reinterpret_cast<FullBarrier&>(storage.x_full[stage]).init(1);
      reinterpret_cast<EmptyBarrier&>(storage.x_empty[stage]).init(2);
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  wait_for_kernel_before();
  const int end = blocks(shape, Config::BlockN);
  StageCursor x_cursor, cursor;
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<56>();
    if (threadIdx.x == 0) {
      for (int i = blockIdx.x; i < end; i += gridDim.x) {
        produce_halo<Config>(maps, shape, storage, block_of(shape, Config::BlockN, i, 0), x_cursor, cursor);
      }
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<224>();
    const int thread = threadIdx.x - 128;
    for (int i = blockIdx.x; i < end; i += gridDim.x) {
      const ConvBlock block = block_of(shape, Config::BlockN, i, 0);
      auto acc = partition_fragment_C(typename Config::Mma{}, Shape<Int<Config::BlockM>, Int<Config::BlockN>>{});
      consume_halo<Config>(shape, storage, thread, acc, x_cursor, cursor);
      if (i + gridDim.x >= end) {
        let_next_kernel_start();
      }
      Epilogue::template run<Config>(params, shape, block, acc, thread, {memory, memory + sizeof(storage)});
    }
  }
#endif
}

template <class Config>
void set_halo_tile(ConvShape& shape) {
  shape.tile_w = Config::TileW;
  shape.tile_h = Config::TileH;
  shape.tile_d = 1;
  complete(shape, Config::BlockM);
}

// As launch_conv; the tile is the configuration's, no sum is shared.
template <class Config, class Epilogue>
void launch_halo_conv(const void* x, int64_t pixel_stride, const void* weight, ConvShape shape,
                      const typename Epilogue::Params& params, cudaStream_t stream) {
  check_hopper();
  set_halo_tile<Config>(shape);
  STD_TORCH_CHECK(shape.taps_h == Config::TapsH && shape.grid == Grid::kSame && shape.split == 1 &&
                      (Config::Channels == 0 || shape.channels == Config::Channels),
                  "conv: made for ", Config::TapsH, " taps in h and ", Config::Channels, " channels, got ",
                  shape.taps_h, " and ", shape.channels);
  TensorBox x_box = pixel_box(pixel_stride, shape);
  x_box.box[2] = Config::TileH + Config::TapsH - 1;
  const ConvMaps maps{tensor_map(x, x_box), tensor_map(weight, weight_box(shape, Config::BlockN))};
  constexpr int kShared = shared_bytes<HaloStorage<Config>, Config, Epilogue>();
  static_assert(kShared <= kMostSharedBytes);
  static_assert(Epilogue::template staged_bytes<Config>() <= sizeof(HaloStorage<Config>));
  launch_kernel(&halo_conv_kernel<Config, Epilogue>, maps, shape, params, Config::BlockN, Epilogue::kManyTiles, kShared,
                stream);
}

}  // namespace lpkernels::hopper
