// Convolution on Hopper as an implicit matrix product: TMA loads, wgmma, FP32 accumulators, an own epilogue.
//
//   acc[m, n] = sum over taps t and channels c of x[pixel(m) + offset(t), c] * weight[n, t, c]
//
// Layouts: x is channels-last (B, D, H, W, C), a slice of a wider buffer if need be; weight (N, taps, C). A block owns
// a box of output pixels (its BlockM rows m) and BlockN outputs. One TMA box per tap and 64 channels brings the pixels
// the tap sees; beyond the image and beyond C TMA writes zeros, which is the padding of both. One producer thread keeps
// Stages boxes in flight; two warpgroups multiply. Where an image has too few tiles for the chip, the blocks of a
// cluster share one tile's sum (`split`). Bound by the tensor cores, for narrow N by filling shared memory.
#pragma once

#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED  // N of 144 and 160

#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/tensor.hpp>

#include "hopper/conv_shape.h"
#include "hopper/tensor_map.h"

namespace lpkernels::hopper {

// Channels_: known when compiling, a multiple of 16, so that what is left after the 64s costs its own steps alone; or
// 0: any number, in boxes of 64.
template <int BlockM_, int BlockN_, int Stages_, int Channels_ = 0>
struct ConvConfig {
  static constexpr int BlockM = BlockM_, BlockN = BlockN_, Stages = Stages_, Channels = Channels_;
  static constexpr int BlockK = kBoxChannels, StepK = 16;  // channels in a 128-byte swizzled row, and in one wgmma
  static constexpr int FullBoxes = Channels / BlockK, TailSteps = Channels % BlockK / StepK;
  static constexpr int Threads = 384;  // one producer warpgroup, two that multiply
  static_assert(Channels % StepK == 0 && BlockM % 128 == 0 && BlockN % 8 == 0 && BlockN <= 256);

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

constexpr int kMultiprocessors = 132;     // of every H100 and H200 with wgmma; fewer only leave blocks waiting
constexpr int kMostSharedBytes = 232448;  // 227 KB, a block's

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

using FullBarrier = cutlass::arch::ClusterTransactionBarrier;
using EmptyBarrier = cutlass::arch::ClusterBarrier;

// Which stage is next, and the parity of its barriers' current phase.
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
__device__ void load_box(const ConvMaps& maps, const ConvShape& shape, ConvStorage<Config>& storage, StageCursor cursor,
                         const ConvBlock& block, const KStep& k) {
  constexpr uint64_t kEvictNormal = 0x1000000000000000;
  constexpr int kBytes = (Config::BlockM + Config::BlockN) * Config::BlockK * sizeof(typename Config::Element);
  uint64_t& full = storage.full[cursor.stage];
  const auto from = pixel_origin(shape, block, k);
  reinterpret_cast<FullBarrier&>(full).arrive_and_expect_tx(kBytes);
  cute::SM90_TMA_LOAD_5D::copy(&maps.x, &full, kEvictNormal, storage.x[cursor.stage], from[0], from[1], from[2],
                               from[3], from[4]);
  // Beyond C the box reads the next tap's weights; x is zero there.
  const auto at = weight_origin(shape, block, k);
  cute::SM90_TMA_LOAD_5D::copy(&maps.weight, &full, kEvictNormal, storage.weight[cursor.stage], at[0], at[1], at[2],
                               at[3], at[4]);
}

template <class Config>
__device__ void produce(const ConvMaps& maps, const ConvShape& shape, ConvStorage<Config>& storage,
                        const ConvBlock& block, StageCursor& cursor) {
  KStep k = first_step(shape, block);
  for (int step = block.k_begin; step < block.k_end; ++step) {
    reinterpret_cast<EmptyBarrier&>(storage.empty[cursor.stage]).wait(cursor.phase ^ 1);
    load_box<Config>(maps, shape, storage, cursor, block, k);
    cursor.advance<Config::Stages>();
    next_step(shape, block, k);
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
__device__ void consume(const ConvShape& shape, ConvStorage<Config>& storage, const ConvBlock& block, int thread,
                        Accumulator& acc, StageCursor& cursor) {
  using namespace cute;
  typename Config::Mma mma;
  constexpr auto kAllSteps = Int<Config::BlockK / Config::StepK>{};
  // The first box apart: it overwrites the accumulators, and inside the loop that would make ptxas serialize wgmma.
  mma.accumulate_ = GMMA::ScaleOut::Zero;
  issue_box<Config, kAllSteps>(storage, cursor, thread, mma, acc);
  if constexpr (Config::Channels > 0) {
    int previous = cursor.stage;
    cursor.advance<Config::Stages>();
    const auto step = [&](auto steps) {
      issue_box<Config, decltype(steps)::value>(storage, cursor, thread, mma, acc);
      // One box's products stay in flight: those of the box before are done, its stage can be filled again.
      warpgroup_wait<1>();
      warpgroup_fence_operand(acc);
      release(storage, previous);
      previous = cursor.stage;
      cursor.advance<Config::Stages>();
    };
    const auto tap_from_box = [&](auto first) {
      CUTLASS_PRAGMA_UNROLL
      for (int box = decltype(first)::value; box < Config::FullBoxes; ++box) {
        step(kAllSteps);
      }
      if constexpr (Config::TailSteps > 0) {
        step(Int<Config::TailSteps>{});
      }
    };
    tap_from_box(Int<1>{});
    const int taps = shape.taps_d * shape.taps_h * shape.taps_w;
    CUTLASS_PRAGMA_NO_UNROLL
    for (int tap = 1; tap < taps; ++tap) {
      tap_from_box(Int<0>{});
    }
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
    release(storage, previous);
  } else {
    // A loop over single boxes that leaves products in flight is serialized too; the other warpgroup fills the gap.
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
    release(storage, cursor.stage);
    cursor.advance<Config::Stages>();
    CUTLASS_PRAGMA_NO_UNROLL
    for (int step = block.k_begin + 1; step < block.k_end; ++step) {
      issue_box<Config, kAllSteps>(storage, cursor, thread, mma, acc);
      warpgroup_wait<0>();
      warpgroup_fence_operand(acc);
      release(storage, cursor.stage);
      cursor.advance<Config::Stages>();
    }
  }
}

// Programmatic dependent launch: a kernel starts while the one before drains, and reads what that wrote after this.
__device__ inline void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Shared memory for an epilogue. Only where a block has a single tile may it write over the stages.
struct EpilogueMemory {
  unsigned char *stages, *own;
};

template <class Storage, class Config, class Epilogue>
constexpr int shared_bytes() {
  return static_cast<int>(sizeof(Storage) + Epilogue::template own_bytes<Config>());
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
  wait_for_kernel_before();
  const int part = blockIdx.x % shape.split, stride = gridDim.x / shape.split, end = blocks(shape, Config::BlockN);
  StageCursor cursor;
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<56>();
    if (threadIdx.x == 0) {
      for (int i = blockIdx.x / shape.split; i < end; i += stride) {
        produce<Config>(maps, shape, storage, block_of(shape, Config::BlockN, i, part), cursor);
      }
    }
    __syncwarp();
    if (Epilogue::kClusters && shape.split > 1) {
      cluster_arrive();  // the partial sums are there
      cluster_wait();
      cluster_arrive();  // and were read
      cluster_wait();
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<224>();
    const int thread = threadIdx.x - 128;
    for (int i = blockIdx.x / shape.split; i < end; i += stride) {
      const ConvBlock block = block_of(shape, Config::BlockN, i, part);
      auto acc = partition_fragment_C(typename Config::Mma{}, Shape<Int<Config::BlockM>, Int<Config::BlockN>>{});
      consume<Config>(shape, storage, block, thread, acc, cursor);
      if (i + stride >= end) {
        let_next_kernel_start();
      }
      Epilogue::template run<Config>(params, shape, block, acc, thread, {memory, memory + sizeof(storage)});
    }
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

// As many blocks as there are pieces of work, or multiprocessors if each may take several.
template <class Params>
void launch_kernel(void (*kernel)(ConvMaps, ConvShape, Params), const ConvMaps& maps, const ConvShape& shape,
                   const Params& params, int block_n, bool many_tiles, int shared_bytes, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  STD_TORCH_CHECK(error == cudaSuccess, "conv: ", cudaGetErrorString(error));
  const int all = blocks(shape, block_n);
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;  // start while the kernel before drains
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(shape.split), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.split > 1 || !many_tiles ? all * shape.split : std::min(all, kMultiprocessors));
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.split > 1 ? 2 : 1;
  error = cudaLaunchKernelEx(&config, kernel, maps, shape, params);
  STD_TORCH_CHECK(error == cudaSuccess, "conv: launch failed: ", cudaGetErrorString(error));
}

// x: the first channel of pixel (0, 0, 0, 0), `pixel_stride` elements between pixels; weight: (phases * outputs, taps,
// C) contiguous.
template <class Config, class Epilogue>
void launch_conv(const void* x, int64_t pixel_stride, const void* weight, ConvShape shape,
                 const typename Epilogue::Params& params, cudaStream_t stream) {
  check_hopper();
  complete(shape, Config::BlockM);
  STD_TORCH_CHECK(Config::Channels == 0 || shape.channels == Config::Channels, "conv: made for ", Config::Channels,
                  " channels, got ", shape.channels);
  STD_TORCH_CHECK(Epilogue::kClusters || shape.split == 1, "conv: this epilogue sums over no cluster");
  STD_TORCH_CHECK(shape.tile_d * shape.tile_h * shape.tile_w == Config::BlockM, "conv: a tile must have ",
                  Config::BlockM, " pixels");
  STD_TORCH_CHECK(!shape.permuted || (shape.outputs % shape.group == 0 && Config::BlockN % shape.group == 0),
                  "conv: outputs must be a multiple of ", shape.group, ", got ", shape.outputs);
  const ConvMaps maps{tensor_map(x, pixel_box(pixel_stride, shape)),
                      tensor_map(weight, weight_box(shape, Config::BlockN))};
  constexpr int kShared = shared_bytes<ConvStorage<Config>, Config, Epilogue>();
  static_assert(kShared <= kMostSharedBytes);
  static_assert(Epilogue::template staged_bytes<Config>() <= sizeof(ConvStorage<Config>));
  launch_kernel(&conv_kernel<Config, Epilogue>, maps, shape, params, Config::BlockN, Epilogue::kManyTiles, kShared,
                stream);
}

}  // namespace lpkernels::hopper
