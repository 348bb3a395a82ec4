// The main loop of products that two neighbouring rows of y share along h (winograd.h), for tiles of 128 outputs or
// more: a warpgroup has registers for two sums of its two rows, so that products of one kind follow those of the other.
//
// A warp makes the sums and differences of x of its 16 pixels in registers while the products before are made, two
// products a group, one for each sum. Bound by shared memory: for 128 outputs four products of 64x128x16 in both
// warpgroups, 512 cycles, read 32 KB of weights and 24 KB of x, and 20 KB of boxes are written for them, 609 cycles;
// without shared products they would be 768.
#pragma once

#include "hopper/winograd_boxes.cuh"

namespace lpkernels::hopper {

template <int BlockN_, int Stages_, int Channels_ = 0, int Cluster_ = 1>
struct WinogradLoop : WinogradBoxes<WinogradConfig<BlockN_, Stages_, Channels_, Cluster_>, /*Together=*/false> {
  using Config = WinogradConfig<BlockN_, Stages_, Channels_, Cluster_>;
  using Boxes = WinogradBoxes<Config, /*Together=*/false>;
  using Cursors = typename Boxes::Cursors;

  // Inlined, for at a call ptxas would wait for every wgmma.
  template <class Memory>
  __device__ __forceinline__ static void consume(const ConvShape& shape, Memory& storage, const ConvBlock&, int thread,
                                                 typename Config::Accumulator& acc, Cursors& cursors) {
    Walk<Memory> walk(storage, thread, acc, cursors);
    walk.begin();
    walk.steps(shape.taps_d * shape.boxes());
    walk.end();
  }

 private:
  using Operands = WinogradOperands<typename Config::Element, 2>;

  // A thread's way through the steps.
  template <class Memory>
  struct Walk {
    WinogradInputs<Config, Memory, Cursors> in;
    typename Config::Accumulator& acc;
    typename Config::Mma mma;
    Operands x[2];  // of the group whose products are made, and of the next

    __device__ __forceinline__ Walk(Memory& storage, int thread, typename Config::Accumulator& acc, Cursors& cursors)
        : in(storage, cursors, thread), acc(acc) {}

    __device__ __forceinline__ void begin() {
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
      cute::clear(acc.sums[0]);
      cute::clear(acc.sums[1]);
      fence_sums();
    }

    // All steps: box after box, depth after depth.
    __device__ __forceinline__ void steps(int left) {
      int boxes = 0;  // of this depth
      CUTLASS_PRAGMA_NO_UNROLL
      do {
        if (Config::TailSteps > 0 && boxes == Config::FullBoxes) {
          step_of<Config::TailSteps>(left % 2 == 0);
          boxes = 0;
        } else {
          step_of<4>(left % 2 == 0);
          ++boxes;
        }
      } while (--left > 0);
    }

    __device__ __forceinline__ void end() { wait_for_all(); }

   private:
    __device__ __forceinline__ void wait_for_all() {
      cute::warpgroup_wait<0>();
      fence_sums();
      in.release_last_tile();
    }

    template <int Slices>
    __device__ __forceinline__ void step_of(bool taps_first) {
      if constexpr (Slices > 0) {
        if (taps_first) {
          step<Slices, true>();
        } else {
          step<Slices, false>();
        }
      }
    }

    template <int Slices, bool TapsFirst>
    __device__ __forceinline__ void step() {
      in.begin_box();
      in.template fetch_first<TapsFirst>();
      products<Slices, TapsFirst, 0>();
      in.template fetch_first<!TapsFirst>();
      wait_for_all();
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < cute::size(acc.sums[0]); ++i) {
        if constexpr (TapsFirst) {
          half_sums_of_rows(acc.sums[0](i), acc.sums[1](i));
        } else {
          rows_of_half_sums(acc.sums[0](i), acc.sums[1](i));
        }
      }
      fence_sums();
      products<Slices, !TapsFirst, winograd_groups(Slices) % 2>();
      in.end_box();
    }

    // All groups of a kind; the first is fetched. Parity: which of x it has.
    template <int Slices, bool Taps, int Parity>
    __device__ __forceinline__ void products() {
      make<Taps>(x[Parity]);
      in.template fetch_next<Slices, 0, Taps>();
      constexpr auto kSlices = std::make_index_sequence<Slices>();
      if constexpr (Slices % 2 == 0) {
        CUTLASS_PRAGMA_NO_UNROLL
        for (int i = 0; i < kWinogradTaps - 1; ++i) {
          tap<Slices, Taps, Parity, 0, false>(kSlices);
        }
      } else {
        tap<Slices, Taps, Parity, 0, false>(kSlices);
        tap<Slices, Taps, Parity, Slices, false>(kSlices);
      }
      tap<Slices, Taps, Parity, 2 * Slices, true>(kSlices);
    }

    // The groups of a tap in w; First: how many there were before, or another even number.
    template <int Slices, bool Taps, int Parity, int First, bool Last, size_t... K>
    __device__ __forceinline__ void tap(std::index_sequence<K...>) {
      (multiply<Slices, Taps, Parity, First, Last, static_cast<int>(K)>(), ...);
    }

    // Issues the products of a group, makes the operands of the next and fetches those of the next but one.
    template <int Slices, bool Taps, int Parity, int First, bool Last, int K>
    __device__ __forceinline__ void multiply() {
      constexpr int kGroup = First + K, kHere = (Parity + kGroup) % 2;
      if constexpr (kGroup % 2 == 0) {
        in.begin_tile();
      }
      issue(x[kHere], 2 * (kGroup % 2));
      cute::warpgroup_wait<1>();
      x[1 - kHere].fence();
      if constexpr (kGroup % 2 == 0) {  // the products of the tile before are done
        in.release_tile();
      }
      if constexpr (kGroup % 2 == 1 || (Last && K + 1 == Slices)) {
        in.end_tile();
      }
      if constexpr (K + 1 < Slices || !Last) {
        make<Taps>(x[1 - kHere]);
      }
      if constexpr (K + 2 < Slices || !Last) {
        in.template fetch_next<Slices, K + 1, Taps>();
      }
    }

    __device__ __forceinline__ void issue(Operands& from, int k) {
      using namespace cute;
      const auto columns = in.columns(mma);
      const int stage = in.cursors.weight.stage;
      from.fence();
      warpgroup_arrive();
      cute::gemm(mma, from.of[0](_, _, 0), columns(_, _, k, stage), acc.sums[0]);
      cute::gemm(mma, from.of[1](_, _, 0), columns(_, _, k + 1, stage), acc.sums[1]);
      warpgroup_commit_batch();
    }

    template <bool Taps>
    __device__ __forceinline__ void make(Operands& to) {
      const auto& u = in.u;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 4; ++i) {
        if constexpr (Taps) {
          to.word(0, i) = difference_of_halves(u[0][i], u[2][i]);
          to.word(1, i) = difference_of_halves(u[3][i], u[1][i]);
        } else {
          to.word(0, i) = sum_of_halves(u[1][i], u[2][i]);
          to.word(1, i) = difference_of_halves(u[2][i], u[1][i]);
        }
      }
    }

    __device__ __forceinline__ void fence_sums() {
      cute::warpgroup_fence_operand(acc.sums[0]);
      cute::warpgroup_fence_operand(acc.sums[1]);
    }
  };
};

}  // namespace lpkernels::hopper
