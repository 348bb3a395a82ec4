// What the main loops of a Hopper convolution share: their configuration, the copies of boxes, and a box's products.
#pragma once

#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED  // N of 144 and 160

#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/tensor.hpp>

#include "hopper/conv_boxes.h"
#include "hopper/ring.cuh"

namespace lpkernels::hopper {

// The sums of a tile with more columns than one wgmma has: those of the first 256, and of the others.
template <class Main, class Side>
struct SplitSums {
  Main main;
  Side side;
};

// Channels_: known when compiling, a multiple of 16, so that what is left after the 64s costs its own steps alone; or
// 0: any number, in boxes of 64. Clusters_: whether the blocks of a cluster may share a tile's sum.
template <int BlockM_, int BlockN_, int Stages_, int Channels_ = 0, bool Clusters_ = false>
struct ConvConfig {
  static constexpr int BlockM = BlockM_, BlockN = BlockN_, Stages = Stages_, Channels = Channels_;
  static constexpr bool Clusters = Clusters_;
  static constexpr bool kRowPairs = false;                 // whether a thread's products 0 and 1 are neighbours in h
  static constexpr int BlockK = kBoxChannels, StepK = 16;  // channels in a 128-byte swizzled row, and in one wgmma
  static constexpr int FullBoxes = Channels / BlockK, TailSteps = Channels % BlockK / StepK;
  static constexpr int Threads = 384;  // one producer warpgroup, two that multiply
  static constexpr int ProducerRegisters = 56, ConsumerRegisters = 224;
  static constexpr int Outputs = BlockN;                                       // of a tile
  static constexpr int MainN = std::min(BlockN, 256), SideN = BlockN - MainN;  // columns of one wgmma, and the others
  static_assert(Channels % StepK == 0 && BlockM % 128 == 0 && BlockN % 8 == 0 && SideN <= 256);

  using Element = cute::half_t;
  template <int N>
  using MmaOf = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float,
                                 cute::Shape<cute::Int<BlockM>, cute::Int<N>, cute::Int<BlockK>>, cute::GMMA::Major::K,
                                 cute::GMMA::Major::K>(),
      cute::Layout<cute::Shape<cute::_2, cute::_1, cute::_1>>{}));
  using Mma = MmaOf<MainN>;
  using SideMma = MmaOf<SideN == 0 ? MainN : SideN>;

  template <class Mma, int N>
  using SumsOf = decltype(cute::partition_fragment_C(Mma{}, cute::Shape<cute::Int<BlockM>, cute::Int<N>>{}));
  using MainSums = SumsOf<Mma, MainN>;
  using Accumulator =
      std::conditional_t<SideN == 0, MainSums, SplitSums<MainSums, SumsOf<SideMma, SideN == 0 ? MainN : SideN>>>;

  // The tile's row that a thread's accumulators of row lane / 4 + 8 s in product tile_m belong to.
  static LPKERNELS_HOST_DEVICE int row(int thread, int tile_m, int s) { return Fragment<8>::row(thread, tile_m, s); }

  template <int Rows>
  using BoxLayout = decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Element>{},
                                                 cute::Shape<cute::Int<Rows>, cute::Int<BlockK>>{}));
};

struct ConvMaps {
  CUtensorMap x, weight;
};

__device__ inline void load_box(const CUtensorMap& map, uint64_t* full, void* to, const std::array<int, 5>& at) {
  constexpr uint64_t kEvictNormal = 0x1000000000000000;
  cute::SM90_TMA_LOAD_5D::copy(&map, full, kEvictNormal, to, at[0], at[1], at[2], at[3], at[4]);
}

// Into the same place of all Blocks blocks of the cluster, and counted by the same barrier of each.
template <int Blocks>
__device__ void load_box_for_all(const CUtensorMap& map, uint64_t* full, void* to, const std::array<int, 5>& at) {
  constexpr uint64_t kEvictNormal = 0x1000000000000000;
  if constexpr (Blocks == 1) {
    load_box(map, full, to, at);
  } else {
    cute::SM90_TMA_LOAD_MULTICAST_5D::copy(&map, full, (1 << Blocks) - 1, kEvictNormal, to, at[0], at[1], at[2], at[3],
                                           at[4]);
  }
}

// The sums of the first wgmma.
template <class Sums>
__device__ __forceinline__ Sums& main_sums(Sums& acc) {
  return acc;
}

template <class Main, class Side>
__device__ __forceinline__ Main& main_sums(SplitSums<Main, Side>& acc) {
  return acc.main;
}

// Keeps the compiler from moving what it does with the sums across this point.
template <class Sums>
__device__ __forceinline__ void fence_sums(Sums& acc) {
  cute::warpgroup_fence_operand(acc);
}

template <class Main, class Side>
__device__ __forceinline__ void fence_sums(SplitSums<Main, Side>& acc) {
  cute::warpgroup_fence_operand(acc.main);
  cute::warpgroup_fence_operand(acc.side);
}

// Issues the first Steps products of BlockM rows of x with a weight box, as one group, without waiting for them.
template <class Config, int Steps, class Accumulator>
__device__ void issue_products(typename Config::Element* x_rows, typename Config::Element* weight_rows, int thread,
                               typename Config::Mma& mma, Accumulator& acc) {
  using namespace cute;
  const auto x = make_tensor(make_smem_ptr(x_rows), typename Config::template BoxLayout<Config::BlockM>{});
  const auto weight = make_tensor(make_smem_ptr(weight_rows), typename Config::template BoxLayout<Config::MainN>{});
  const auto thread_mma = mma.get_thread_slice(thread);
  const auto fragment_x = thread_mma.partition_fragment_A(x);
  const auto fragment_weight = thread_mma.partition_fragment_B(weight);
  fence_sums(acc);
  warpgroup_arrive();
  CUTLASS_PRAGMA_UNROLL
  for (int k = 0; k < Steps; ++k) {
    cute::gemm(mma, fragment_x(_, _, k), fragment_weight(_, _, k), main_sums(acc));
    if constexpr (Config::SideN > 0) {
      typename Config::SideMma side;
      side.accumulate_ = mma.accumulate_;
      const auto others = make_tensor(make_smem_ptr(weight_rows + Config::MainN * Config::BlockK),
                                      typename Config::template BoxLayout<Config::SideN>{});
      const auto fragment_others = side.get_thread_slice(thread).partition_fragment_B(others);
      cute::gemm(side, fragment_x(_, _, k), fragment_others(_, _, k), acc.side);
    }
    mma.accumulate_ = GMMA::ScaleOut::One;
  }
  warpgroup_commit_batch();
}

}  // namespace lpkernels::hopper
