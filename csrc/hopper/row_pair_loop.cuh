// The main loop of products that two neighbouring rows of y share along h (row_pairs.h).
//
// A step is 64 channels of a tap in d, or what is left over of several taps. Its rows of x come two by two and stay for
// the products of both kinds; its weights come tile by tile, each half loaded by one block of a cluster of two for
// both: a tile is used for 128 rows of x alone, and every block loading all of it is more than the L2 gives. A warp
// makes the sums and differences of x of its 16 pixels in registers while the products before are made. Two products a
// group, of one sum each: sums of two rows by 64 pixels a warpgroup. Bound by shared memory: a product of 80 cycles, 10
// KB, reads 5.1 KB of weights and 2.9 KB of x, and 3.4 KB of boxes are written for it.
#pragma once

#include <cute/arch/cluster_sm90.hpp>

#include "hopper/half_matrices.cuh"
#include "hopper/products.cuh"
#include "hopper/row_pairs.h"

namespace lpkernels::hopper {

struct RowPairConfig : ConvConfig<kPairTileH * kPairTileW, kPairColumns, /*Stages=*/4, kPairChannels> {
  static constexpr int ProducerRegisters = 40, ConsumerRegisters = 232;
  static constexpr int kCluster = 2;

  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float,
                                 cute::Shape<cute::_128, cute::Int<kPairColumns>, cute::Int<BlockK>>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>(),
      cute::Layout<cute::Shape<cute::_2, cute::_1, cute::_1>>{}));
  using Sum = decltype(cute::partition_fragment_C(Mma{}, cute::Shape<cute::_128, cute::Int<kPairColumns>>{}));

  // Of the two rows of a warpgroup: row pair_row(warpgroup, i) is sums[i].
  struct Accumulator {
    Sum sums[2];

    __device__ float operator()(int i) const { return sums[i / (kPairColumns / 2)](i % (kPairColumns / 2)); }
  };
};

struct RowPairMaps {
  CUtensorMap x, left_over, weight;
};

struct RowPairLoop {
  using Config = RowPairConfig;
  using Element = Config::Element;
  static constexpr int kXStages = 9, kBoxBytes = kPairBoxRows * kPairTileW * Config::BlockK * sizeof(Element);
  static constexpr int kTileBytes = kPairColumns * Config::BlockK * sizeof(Element);

  struct Storage {
    alignas(1024) unsigned char x[kXStages][kBoxBytes];
    alignas(1024) Element weight[Config::Stages][kPairColumns * Config::BlockK];
    RingBarriers<kXStages, 1, 8> x_ring;
    RingBarriers<Config::Stages, 1, 2 * Config::kCluster> ring;

    __device__ void init() {
      x_ring.init();
      ring.init();
    }
  };

  struct Cursors {
    StageCursor<kXStages> x;
    StageCursor<Config::Stages> weight;
  };

  __device__ static void load_pixels(const RowPairMaps& maps, Storage& storage, const ConvBlock& block) {
    StageCursor<kXStages> at;
    CUTLASS_PRAGMA_NO_UNROLL
    for (int i = 0; i < kPairSteps * kPairBoxes; ++i) {
      const PairStep step = pair_step(i / kPairBoxes);
      uint64_t* full = storage.x_ring.begin_fill(at.stage, at.phase, kBoxBytes);
      load_box(step.left_over ? maps.left_over : maps.x, full, storage.x[at.stage],
               pair_box_at(block, step, i % kPairBoxes));
      at.advance();
    }
  }

  // This block's half of each tile's columns, for both blocks; a tile's place is empty when it is in both.
  __device__ static void load_weights(const RowPairMaps& maps, Storage& storage) {
    constexpr int kColumns = kPairColumns / Config::kCluster;
    const int first = static_cast<int>(cute::block_rank_in_cluster()) * kColumns;
    StageCursor<Config::Stages> at;
    CUTLASS_PRAGMA_NO_UNROLL
    for (int tile = 0; tile < kPairSteps * kStepTiles; ++tile) {
      uint64_t* full = storage.ring.begin_fill(at.stage, at.phase, kTileBytes);
      load_box_for_all<Config::kCluster>(maps.weight, full, storage.weight[at.stage] + first * Config::BlockK,
                                         {tile * Config::BlockK, first, 0, 0, 0});
      at.advance();
    }
  }

  // Inlined, for at a call ptxas would wait for every wgmma.
  __device__ __forceinline__ static void consume(Storage& storage, int thread, Config::Accumulator& acc) {
    Walk walk(storage, thread, acc);
    walk.begin();
    walk.step<0>();
    walk.step<1>();
    CUTLASS_PRAGMA_NO_UNROLL
    for (int tap = 0; tap < kPairTaps; ++tap) {
      walk.step<kLeftOverSteps>();
      walk.step<kLeftOverSteps + 1>(tap + 1 < kPairTaps);
    }
    walk.end();
  }

 private:
  using WeightLayout = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_K_SW128_Atom<Element>{},
      cute::Shape<cute::Int<kPairColumns>, cute::Int<Config::BlockK>, cute::Int<Config::Stages>>{}));

  // What the two products of a group multiply.
  struct Operands {
    using Fragment = decltype(cute::make_tensor<Element>(
        cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1, cute::_1>{}));
    Fragment of[2];

    __device__ uint32_t& word(int sum, int i) { return reinterpret_cast<uint32_t*>(of[sum].data())[i]; }
  };

  // A thread's way through the steps.
  struct Walk {
    Storage& storage;
    Config::Accumulator& acc;
    const int thread;
    Config::Mma mma;
    Cursors cursors;
    Operands x[2];       // of the group whose products are made, and of the next
    uint32_t chunks[2];  // what this lane loads of a 16 x 16 matrix: in a box of 64 channels, and of what is left over
    uint32_t boxes[4];   // with rows u of this warpgroup, two by two
    int read;            // the stage of the tile that was multiplied with last

    __device__ __forceinline__ Walk(Storage& storage, int thread, Config::Accumulator& acc)
        : storage(storage), acc(acc), thread(thread) {
      const int lane = thread % 32, pixel = thread % 128 / 32 * 16 + lane % 16, chunk = lane / 16;
      chunks[0] = pair_chunk(false, pixel, chunk);
      chunks[1] = pair_chunk(true, pixel, chunk);
    }

    __device__ __forceinline__ void begin() {
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
      cute::clear(acc.sums[0]);
      cute::clear(acc.sums[1]);
      load<0, true, 0>(x[0], true);
    }

    // More: whether there is another after it. Steps with the same remainder by two are alike, but for what is left
    // over.
    template <int Step>
    __device__ __forceinline__ void step(bool more = true) {
      fence_sums();
      groups<Step, true>(std::make_index_sequence<count<Step, true>()>{}, true);
      wait_for_all();
      release(read);
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < cute::size(acc.sums[0]); ++i) {
        if constexpr (kTaps<Step, true>) {
          half_sums_of_rows(acc.sums[0](i), acc.sums[1](i));
        } else {
          rows_of_half_sums(acc.sums[0](i), acc.sums[1](i));
        }
      }
      fence_sums();
      groups<Step, false>(std::make_index_sequence<count<Step, false>()>{}, more);
    }

    __device__ __forceinline__ void end() { wait_for_all(); }

   private:
    template <int Step, bool First>
    static constexpr bool kTaps = (Step % 2 == 0) == First;

    template <int Step, bool First>
    __device__ static constexpr int count() {
      return pair_groups(kTaps<Step, First>, pair_products(Step));
    }

    template <int Step, bool First, int I>
    __device__ static constexpr PairGroup group() {
      return pair_group(kTaps<Step, First>, pair_products(Step), I);
    }

    // Which of x has the operands of a step's first group of a kind.
    template <int Step, bool First>
    __device__ static constexpr int parity() {
      if constexpr (!First) {
        return (parity<Step, true>() + count<Step, true>()) % 2;
      } else if constexpr (Step == 0) {
        return 0;
      } else {
        return (parity<Step - 1, false>() + count<Step - 1, false>()) % 2;
      }
    }

    template <int Step, bool First, size_t... I>
    __device__ __forceinline__ void groups(std::index_sequence<I...>, bool more) {
      (multiply<Step, First, static_cast<int>(I)>(more), ...);
    }

    // Issues the products of a group and loads the next, while those before it end.
    template <int Step, bool First, int I>
    __device__ __forceinline__ void multiply(bool more) {
      constexpr PairGroup kGroup = group<Step, First, I>();
      constexpr int kHere = (parity<Step, First>() + I) % 2;
      auto& weight = cursors.weight;
      if constexpr (kGroup.opens) {
        storage.ring.wait_full(weight.stage, weight.phase);
      }
      issue(x[kHere], kGroup.weight[0], kGroup.weight[1]);
      cute::warpgroup_wait<1>();
      fence(x[1 - kHere]);
      if constexpr (I > 0) {
        if constexpr (group<Step, First, I - 1>().closes) {
          release(read);
        }
      } else if constexpr (First && Step > 0) {
        release(read);
      }
      if constexpr (kGroup.closes) {
        read = weight.stage;
        weight.advance();
      }
      if constexpr (I + 1 < count<Step, First>()) {
        load<Step, First, I + 1>(x[1 - kHere], true);
      } else if constexpr (First) {
        load<Step, false, 0>(x[1 - kHere], true);
      } else {
        load<Step + 1, true, 0>(x[1 - kHere], more);
      }
    }

    __device__ __forceinline__ void issue(Operands& from, int k0, int k1) {
      using namespace cute;
      const auto weight = make_tensor(make_smem_ptr(&storage.weight[0][0]), WeightLayout{});
      const auto fragment = mma.get_thread_slice(thread).partition_fragment_B(weight);
      fence(from);
      warpgroup_arrive();
      cute::gemm(mma, from.of[0](_, _, 0), fragment(_, _, k0, cursors.weight.stage), acc.sums[0]);
      cute::gemm(mma, from.of[1](_, _, 0), fragment(_, _, k1, cursors.weight.stage), acc.sums[1]);
      warpgroup_commit_batch();
    }

    // Real: whether there is such a group; else what lies there is loaded, and not used.
    template <int Step, bool First, int I>
    __device__ __forceinline__ void load(Operands& to, bool real) {
      constexpr PairGroup kGroup = group<Step, First, I>();
      constexpr bool kLeftOver = pair_step(Step).left_over;
      if constexpr (First && I == 0) {
        enter(real);
      }
      if constexpr (kGroup.kind == PairKind::kTaps && kGroup.row == 3 && kGroup.k == 0) {  // the first that reads u6
        auto last = cursors.x;
        CUTLASS_PRAGMA_UNROLL
        for (int i = 1; i < kPairBoxes; ++i) {
          last.advance();
        }
        storage.x_ring.wait_full(last.stage, last.phase);
      }
      MatrixWords u[4];
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < (kGroup.kind == PairKind::kTaps ? 4 : 2); ++j) {
        const int at = kGroup.row + j;
        load_matrix(u[j],
                    boxes[at / kPairBoxRows] + pair_place(kLeftOver, chunks[kLeftOver], kGroup.k, at % kPairBoxRows));
      }
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 4; ++i) {
        if constexpr (kGroup.kind == PairKind::kHalfSums) {
          to.word(0, i) = sum_of_halves(u[0][i], u[1][i]);
          to.word(1, i) = difference_of_halves(u[1][i], u[0][i]);
        } else if constexpr (kGroup.kind == PairKind::kTaps) {
          to.word(0, i) = difference_of_halves(u[0][i], u[2][i]);
          to.word(1, i) = difference_of_halves(u[3][i], u[1][i]);
        } else {
          to.word(0, i) = u[0][i];
          to.word(1, i) = u[1][i];
        }
      }
      if constexpr (!First && I + 1 == count<Step, First>()) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < kPairBoxes; ++i) {
          storage.x_ring.release(cursors.x.stage);
          cursors.x.advance();
        }
      }
    }

    // The boxes of the next step. The last is waited for when it is needed: it has rows u6 and u7 alone.
    __device__ __forceinline__ void enter(bool real) {
      auto at = cursors.x;
      uint32_t addresses[kPairBoxes];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kPairBoxes; ++i) {
        if (real && i + 1 < kPairBoxes) {
          storage.x_ring.wait_full(at.stage, at.phase);
        }
        addresses[i] = cute::cast_smem_ptr_to_uint(storage.x[at.stage]);
        at.advance();
      }
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kPairBoxes - 1; ++i) {
        boxes[i] = thread < 128 ? addresses[i] : addresses[i + 1];
      }
    }

    // A tile's place, in both blocks.
    __device__ __forceinline__ void release(int stage) {
      storage.ring.template release_in_cluster<Config::kCluster>(stage);
    }

    __device__ __forceinline__ void wait_for_all() {
      cute::warpgroup_wait<0>();
      fence_sums();
    }

    __device__ __forceinline__ void fence_sums() {
      cute::warpgroup_fence_operand(acc.sums[0]);
      cute::warpgroup_fence_operand(acc.sums[1]);
    }

    __device__ __forceinline__ static void fence(Operands& operands) {
      cute::warpgroup_fence_operand(operands.of[0]);
      cute::warpgroup_fence_operand(operands.of[1]);
    }
  };
};

}  // namespace lpkernels::hopper
