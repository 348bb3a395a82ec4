// Convolution on Hopper as an implicit matrix product: TMA loads, wgmma, FP32 accumulators, an own epilogue.
//
//   acc[m, n] = sum over taps t and channels c of x[pixel(m) + offset(t), c] * weight[n, t, c]
//
// Layouts: x is channels-last (B, D, H, W, C), C a multiple of 16; weight (N, taps, C). A block owns a box of TileD x
// TileH x TileW output pixels (its rows m) and BlockN outputs. One TMA box per tap and 64 channels brings the pixels
// the tap sees; beyond the image TMA writes zeros, which is the padding. Channels left over after the 64s (C mod 64)
// come in slabs of 16, so that 144 channels cost 9 steps of 16 and not 12. One producer thread keeps Stages boxes in
// flight; two warpgroups multiply. Bound by the tensor cores.
#pragma once

#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED  // N of 144 and 160

#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/tensor.hpp>

#include "hopper/tensor_map.h"

namespace lpkernels::hopper {

template <int TileD_, int TileH_, int TileW_, int BlockN_, int Channels_, int Stages_>
struct ConvConfig {
  static constexpr int TileD = TileD_, TileH = TileH_, TileW = TileW_;
  static constexpr int BlockM = TileD * TileH * TileW, BlockN = BlockN_;
  static constexpr int Channels = Channels_, Stages = Stages_;
  static constexpr int BlockK = 64, StepK = 16;  // channels in a box, a 128-byte swizzled row; and in one wgmma
  static constexpr int FullBoxes = Channels / BlockK, TailSteps = Channels % BlockK / StepK;
  static constexpr int Boxes = FullBoxes + (TailSteps > 0);
  static constexpr int Threads = 384;  // one producer warpgroup, two that multiply
  static_assert(Channels % StepK == 0 && FullBoxes > 0 && BlockM % 128 == 0 && BlockN % 8 == 0 && BlockN <= 256);

  using Element = cute::half_t;
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float,
                                 cute::Shape<cute::Int<BlockM>, cute::Int<BlockN>, cute::Int<BlockK>>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>(),
      cute::Layout<cute::Shape<cute::_2, cute::_1, cute::_1>>{}));

  template <int Rows>
  using BoxLayout = decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Element>{},
                                                 cute::Shape<cute::Int<Rows>, cute::Int<BlockK>>{}));
};

struct ConvShape {
  int batch, depth, height, width;
  int taps_d, taps_h, taps_w;                 // odd; padding is half of each
  int tiles_d = 0, tiles_h = 0, tiles_w = 0;  // set at launch
};

struct ConvMaps {
  CUtensorMap x, weight;
};

template <class Config>
struct ConvStorage {
  alignas(1024) typename Config::Element x[Config::Stages][Config::BlockM * Config::BlockK];
  alignas(1024) typename Config::Element weight[Config::Stages][Config::BlockN * Config::BlockK];
  alignas(8) uint64_t full[Config::Stages];
  alignas(8) uint64_t empty[Config::Stages];
};

// Where a block's box of output pixels begins.
struct TileOrigin {
  int b, d, h, w;
};

template <class Config>
__device__ TileOrigin tile_origin(const ConvShape& shape, int tile) {
  const int tw = tile % shape.tiles_w, th = tile / shape.tiles_w % shape.tiles_h;
  const int td = tile / (shape.tiles_w * shape.tiles_h) % shape.tiles_d;
  const int b = tile / (shape.tiles_w * shape.tiles_h * shape.tiles_d);
  return {b, td * Config::TileD, th * Config::TileH, tw * Config::TileW};
}

using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
using EmptyBarrier = cutlass::arch::ClusterBarrier;

struct StageCursor {
  int stage = 0;
  uint32_t phase = 0;
  template <int Stages>
  __device__ void advance() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <class Config>
__device__ void load_box(const ConvMaps& maps, ConvStorage<Config>& storage, StageCursor cursor, int box, int tap,
                         int n0, const TileOrigin& at) {
  constexpr uint64_t kEvictNormal = 0x1000000000000000;
  constexpr int kBytes = (Config::BlockM + Config::BlockN) * Config::BlockK * sizeof(typename Config::Element);
  uint64_t& full = storage.full[cursor.stage];
  const int c0 = box * Config::BlockK;
  reinterpret_cast<FullBarrier&>(full).arrive_and_expect_tx(kBytes);
  cute::SM90_TMA_LOAD_5D::copy(&maps.x, &full, kEvictNormal, storage.x[cursor.stage], c0, at.w, at.h, at.d, at.b);
  cute::SM90_TMA_LOAD_3D::copy(&maps.weight, &full, kEvictNormal, storage.weight[cursor.stage], c0, tap, n0);
}

template <class Config>
__device__ void produce(const ConvMaps& maps, const ConvShape& shape, ConvStorage<Config>& storage, int n0,
                        const TileOrigin& origin) {
  StageCursor cursor;
  int tap = 0;
  for (int td = 0; td < shape.taps_d; ++td) {
    for (int th = 0; th < shape.taps_h; ++th) {
      for (int tw = 0; tw < shape.taps_w; ++tw, ++tap) {
        const TileOrigin at{origin.b, origin.d + td - shape.taps_d / 2, origin.h + th - shape.taps_h / 2,
                            origin.w + tw - shape.taps_w / 2};
        for (int box = 0; box < Config::Boxes; ++box) {
          reinterpret_cast<EmptyBarrier&>(storage.empty[cursor.stage]).wait(cursor.phase ^ 1);
          load_box<Config>(maps, storage, cursor, box, tap, n0, at);
          cursor.advance<Config::Stages>();
        }
      }
    }
  }
}

// Issues the first Steps products of the box at `cursor` as one group, without waiting for them.
template <class Config, int Steps, class Accumulator>
__device__ void issue_box(ConvStorage<Config>& storage, StageCursor cursor, int thread, typename Config::Mma& mma,
                          Accumulator& acc) {
  using namespace cute;
  const auto x =
      make_tensor(make_smem_ptr(storage.x[cursor.stage]), typename Config::template BoxLayout<Config::BlockM>{});
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
    mma.accumulate_ = GMMA::ScaleOut::One;
  }
  warpgroup_commit_batch();
}

template <class Config>
__device__ void release(ConvStorage<Config>& storage, int stage) {
  if (threadIdx.x % 128 == 0) {
    reinterpret_cast<EmptyBarrier&>(storage.empty[stage]).arrive();
  }
}

template <class Config, class Accumulator>
__device__ void consume(const ConvShape& shape, ConvStorage<Config>& storage, int thread, Accumulator& acc) {
  using namespace cute;
  typename Config::Mma mma;
  StageCursor cursor;
  int previous = 0;
  const auto step = [&](auto steps) {
    issue_box<Config, decltype(steps)::value>(storage, cursor, thread, mma, acc);
    // One box's products stay in flight: those of the box before are done, its stage can be filled again.
    warpgroup_wait<1>();
    warpgroup_fence_operand(acc);
    release(storage, previous);
    previous = cursor.stage;
    cursor.advance<Config::Stages>();
  };
  constexpr auto kAllSteps = Int<Config::BlockK / Config::StepK>{};
  const auto tap_from_box = [&](auto first) {
    CUTLASS_PRAGMA_UNROLL
    for (int box = decltype(first)::value; box < Config::FullBoxes; ++box) {
      step(kAllSteps);
    }
    if constexpr (Config::TailSteps > 0) {
      step(Int<Config::TailSteps>{});
    }
  };
  // The first box apart: it overwrites the accumulators, and inside the loop that would make ptxas serialize wgmma.
  mma.accumulate_ = GMMA::ScaleOut::Zero;
  issue_box<Config, kAllSteps>(storage, cursor, thread, mma, acc);
  cursor.advance<Config::Stages>();
  tap_from_box(Int<1>{});
  const int taps = shape.taps_d * shape.taps_h * shape.taps_w;
  CUTLASS_PRAGMA_NO_UNROLL
  for (int tap = 1; tap < taps; ++tap) {
    tap_from_box(Int<0>{});
  }
  warpgroup_wait<0>();
  warpgroup_fence_operand(acc);
}

template <class Config, class Epilogue>
__global__ void __launch_bounds__(Config::Threads, 1)
    conv_kernel(const __grid_constant__ ConvMaps maps, const ConvShape shape, const typename Epilogue::Params params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace cute;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& storage = *reinterpret_cast<ConvStorage<Config>*>(memory);
  const int warpgroup = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Config::Stages; ++stage) {
      reinterpret_cast<FullBarrier&>(storage.full[stage]).init(1);
      reinterpret_cast<EmptyBarrier&>(storage.empty[stage]).init(2);  // one arrival per multiplying warpgroup
    }
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  const int n0 = blockIdx.x * Config::BlockN;
  const TileOrigin origin = tile_origin<Config>(shape, blockIdx.y);
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    if (threadIdx.x == 0) {
      produce<Config>(maps, shape, storage, n0, origin);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<240>();
    const int thread = threadIdx.x - 128;
    auto acc = partition_fragment_C(typename Config::Mma{}, Shape<Int<Config::BlockM>, Int<Config::BlockN>>{});
    consume<Config>(shape, storage, thread, acc);
    Epilogue::template run<Config>(params, shape, origin, n0, acc, thread, memory);
  }
#endif
}

// Syncs the two multiplying warpgroups alone.
__device__ inline void sync_consumers() {
  cutlass::arch::NamedBarrier::sync(256, 1);
}

// Raises unless this is a Hopper GPU and the library holds code for it: elsewhere conv_kernel has no body.
inline void check_hopper() {
#ifndef LPKERNELS_SM90A
  STD_TORCH_CHECK(false, "the op library was built without sm_90a: rebuild with TORCH_CUDA_ARCH_LIST=9.0a");
#endif
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  STD_TORCH_CHECK(major == 9, "needs a Hopper GPU (compute capability 9.0), this is ", major, ".x");
}

inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// x: (B, D, H, W, C) with a pixel stride that may exceed C (a slice of a wider buffer); weight: (N, taps, C)
// contiguous.
template <class Config, class Epilogue>
void launch_conv(const void* x, int64_t pixel_stride, const void* weight, int outputs, ConvShape shape,
                 const typename Epilogue::Params& params, cudaStream_t stream) {
  check_hopper();
  shape.tiles_d = ceil_div(shape.depth, Config::TileD);
  shape.tiles_h = ceil_div(shape.height, Config::TileH);
  shape.tiles_w = ceil_div(shape.width, Config::TileW);
  const uint64_t c = Config::Channels, w = shape.width, h = shape.height, d = shape.depth, p = pixel_stride;
  const uint64_t taps = static_cast<uint64_t>(shape.taps_d) * shape.taps_h * shape.taps_w, n = outputs;
  const std::array<uint64_t, 5> x_sizes{c, w, h, d, static_cast<uint64_t>(shape.batch)};
  const std::array<uint64_t, 4> x_strides{p, p * w, p * w * h, p * w * h * d};
  const ConvMaps maps{
      make_tensor_map<5>(x, x_sizes, x_strides, {Config::BlockK, Config::TileW, Config::TileH, Config::TileD, 1}),
      make_tensor_map<3>(weight, {c, taps, n}, {c, c * taps}, {Config::BlockK, 1, Config::BlockN})};
  constexpr int kShared = sizeof(ConvStorage<Config>);
  static_assert(kShared <= 232448, "a block has 227 KB of shared memory");
  static_assert(Epilogue::template shared_bytes<Config>() <= sizeof(ConvStorage<Config>));
  const auto kernel = &conv_kernel<Config, Epilogue>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  STD_TORCH_CHECK(error == cudaSuccess, "conv: ", cudaGetErrorString(error));
  const dim3 grid(ceil_div(outputs, Config::BlockN), shape.tiles_d * shape.tiles_h * shape.tiles_w * shape.batch);
  kernel<<<grid, Config::Threads, kShared, stream>>>(maps, shape, params);
}

}  // namespace lpkernels::hopper
