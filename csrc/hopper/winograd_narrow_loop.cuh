// The main loop of products that two neighbouring rows of y share along h (winograd.h), for tiles of 64 outputs: all
// four sums of a warpgroup's two rows are in registers, and x is read once for products of both kinds.
//
// A warp makes the sums and differences of x of its 16 pixels in registers while the products before are made, four
// products a group. Bound by shared memory: four products of 64x64x16 in both warpgroups, 256 cycles, read 16 KB of
// weights and as much of x, and 12 KB of boxes are written for them, 355 cycles; without shared products they would be
// 384, and 448 of shared memory.
#pragma once

#include "hopper/winograd_boxes.cuh"

namespace lpkernels::hopper {

template <int BlockN_, int Stages_, int Channels_ = 0, int Cluster_ = 1>
struct WinogradNarrowLoop : WinogradBoxes<WinogradConfig<BlockN_, Stages_, Channels_, Cluster_>, /*Together=*/true> {
  using Config = WinogradConfig<BlockN_, Stages_, Channels_, Cluster_>;
  using Boxes = WinogradBoxes<Config, /*Together=*/true>;
  using Cursors = typename Boxes::Cursors;

  // Inlined, for at a call ptxas would wait for every wgmma.
  template <class Memory>
  __device__ __forceinline__ static void consume(const ConvShape& shape, Memory& storage, const ConvBlock&, int thread,
                                                 typename Config::Accumulator& acc, Cursors& cursors) {
    Walk<Memory> walk(storage, thread, cursors);
    walk.begin();
    if constexpr (Config::TailSteps == 0) {
      walk.boxes(shape.taps_d * shape.boxes());
    } else {
      walk.depths(shape.taps_d);
    }
    walk.end(acc);
  }

 private:
  static constexpr int kProducts = 4;
  using Operands = WinogradOperands<typename Config::Element, kProducts>;

  // A thread's way through the boxes.
  template <class Memory>
  struct Walk {
    WinogradInputs<Config, Memory, Cursors> in;
    typename Config::Mma mma;
    typename Config::Sum sums[kProducts];  // of each product
    Operands x[2];                         // of the group whose products are made, and of the next

    __device__ __forceinline__ Walk(Memory& storage, int thread, Cursors& cursors) : in(storage, cursors, thread) {}

    __device__ __forceinline__ void begin() {
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
      CUTLASS_PRAGMA_UNROLL
      for (auto& sum : sums) {
        cute::clear(sum);
      }
      fence_sums();
    }

    // Any number of boxes of four slices.
    __device__ __forceinline__ void boxes(int left) {
      CUTLASS_PRAGMA_NO_UNROLL
      do {
        step<4>();
      } while (--left > 0);
    }

    // The boxes of each depth, the last of which has fewer slices.
    __device__ __forceinline__ void depths(int left) {
      CUTLASS_PRAGMA_NO_UNROLL
      do {
        depth(std::make_index_sequence<Config::FullBoxes>());
      } while (--left > 0);
    }

    __device__ __forceinline__ void end(typename Config::Accumulator& acc) {
      wait_for_all();
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < cute::size(sums[0]); ++i) {
        acc.sums[0](i) = sums[0](i) + (sums[2](i) + sums[3](i));
        acc.sums[1](i) = sums[1](i) + (sums[2](i) - sums[3](i));
      }
    }

   private:
    template <size_t... Box>
    __device__ __forceinline__ void depth(std::index_sequence<Box...>) {
      ((static_cast<void>(Box), step<4>()), ...);
      step<Config::TailSteps>();
      if constexpr (winograd_groups(Config::TailSteps) % 2 != 0) {
        wait_for_all();  // the next box begins with the operands that its last group has
      }
    }

    template <int Slices>
    __device__ __forceinline__ void step() {
      in.begin_box();
      in.template fetch_first</*Outer=*/true>();
      make(x[0]);
      in.template fetch_next<Slices, 0, /*Outer=*/true>();
      if constexpr (Slices % 2 == 0) {
        CUTLASS_PRAGMA_NO_UNROLL
        for (int i = 0; i < kWinogradTaps - 1; ++i) {
          tap<Slices, 0, false>(std::make_index_sequence<Slices>());
        }
      } else {
        tap<Slices, 0, false>(std::make_index_sequence<Slices>());
        tap<Slices, Slices, false>(std::make_index_sequence<Slices>());
      }
      tap<Slices, 2 * Slices, true>(std::make_index_sequence<Slices>());
      in.end_box();
    }

    // The groups of a tap in w; First: how many there were before, or another even number.
    template <int Slices, int First, bool Last, size_t... K>
    __device__ __forceinline__ void tap(std::index_sequence<K...>) {
      (multiply<Slices, First, Last, static_cast<int>(K)>(), ...);
    }

    // Issues the products of a group, makes the operands of the next and fetches those of the next but one.
    template <int Slices, int First, bool Last, int K>
    __device__ __forceinline__ void multiply() {
      constexpr int kHere = (First + K) % 2;
      in.begin_tile();
      issue(x[kHere]);
      cute::warpgroup_wait<1>();
      x[1 - kHere].fence();
      in.release_tile();
      in.end_tile();
      if constexpr (K + 1 < Slices || !Last) {
        make(x[1 - kHere]);
      }
      if constexpr (K + 2 < Slices || !Last) {
        in.template fetch_next<Slices, K + 1, /*Outer=*/true>();
      }
    }

    __device__ __forceinline__ void issue(Operands& from) {
      using namespace cute;
      const auto columns = in.columns(mma);
      const int stage = in.cursors.weight.stage;
      from.fence();
      warpgroup_arrive();
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kProducts; ++i) {
        cute::gemm(mma, from.of[i](_, _, 0), columns(_, _, i, stage), sums[i]);
      }
      warpgroup_commit_batch();
    }

    __device__ __forceinline__ void make(Operands& to) {
      const auto& u = in.u;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 4; ++i) {
        to.word(0, i) = difference_of_halves(u[0][i], u[2][i]);
        to.word(1, i) = difference_of_halves(u[3][i], u[1][i]);
        to.word(2, i) = sum_of_halves(u[1][i], u[2][i]);
        to.word(3, i) = difference_of_halves(u[2][i], u[1][i]);
      }
    }

    __device__ __forceinline__ void wait_for_all() {
      cute::warpgroup_wait<0>();
      fence_sums();
      in.release_last_tile();
    }

    __device__ __forceinline__ void fence_sums() {
      CUTLASS_PRAGMA_UNROLL
      for (auto& sum : sums) {
        cute::warpgroup_fence_operand(sum);
      }
    }
  };
};

}  // namespace lpkernels::hopper
