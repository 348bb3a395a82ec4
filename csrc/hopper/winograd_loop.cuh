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
    Memory& storage;
    typename Config::Accumulator& acc;
    Cursors& cursors;
    const int thread;
    const int pixel;  // of its 16 pixels in a row, the one this lane loads
    typename Config::Mma mma;
    Operands x[2];     // of the group whose products are made, and of the next
    uint32_t box;      // with the first row of this warpgroup
    MatrixWords u[4];  // rows of x that the operands of the group behind the next are made of
    int kw;            // the tap in w that is fetched
    uint32_t chunk;    // what this lane loads of a row for it
    int read = -1;     // the stage of the tile that was multiplied with last

    __device__ __forceinline__ Walk(Memory& storage, int thread, typename Config::Accumulator& acc, Cursors& cursors)
        : storage(storage), acc(acc), cursors(cursors), thread(thread), pixel(thread % 128 / 32 * 16 + thread % 16) {}

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
      release_tile();
      read = -1;
    }

    // The place of the tile that was multiplied with last, in all blocks, once its products are done.
    __device__ __forceinline__ void release_tile() {
      if (read >= 0) {
        storage.ring.template release_in_cluster<Config::kCluster>(read);
      }
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
      storage.x_ring.wait_full(cursors.x.stage, cursors.x.phase);
      box = cute::cast_smem_ptr_to_uint(storage.x[cursors.x.stage]) + winograd_row(thread / 128, 0) * kWinogradRowBytes;
      at_tap(0);
      fetch<TapsFirst, 0>();
      products<Slices, TapsFirst, 0>();
      at_tap(0);
      fetch<!TapsFirst, 0>();
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
      storage.x_ring.release(cursors.x.stage);
      cursors.x.advance();
    }

    // All groups of a kind; the first is fetched. Parity: which of x it has.
    template <int Slices, bool Taps, int Parity>
    __device__ __forceinline__ void products() {
      make<Taps>(x[Parity]);
      fetch_next<Slices, Taps, 0>();
      if constexpr (Slices % 2 == 0) {
        CUTLASS_PRAGMA_NO_UNROLL
        for (int kw = 0; kw < kWinogradTaps - 1; ++kw) {
          tap<Slices, Taps, Parity, 0, false>();
        }
      } else {
        tap<Slices, Taps, Parity, 0, false>();
        tap<Slices, Taps, Parity, Slices, false>();
      }
      tap<Slices, Taps, Parity, 2 * Slices, true>();
    }

    // The groups of a tap in w; First: how many there were before, or another even number.
    template <int Slices, bool Taps, int Parity, int First, bool Last>
    __device__ __forceinline__ void tap() {
      groups<Slices, Taps, Parity, First, Last>(std::make_index_sequence<Slices>());
    }

    template <int Slices, bool Taps, int Parity, int First, bool Last, size_t... K>
    __device__ __forceinline__ void groups(std::index_sequence<K...>) {
      (multiply<Slices, Taps, Parity, First, Last, static_cast<int>(K)>(), ...);
    }

    // Issues the products of a group, makes the operands of the next and fetches those of the next but one.
    template <int Slices, bool Taps, int Parity, int First, bool Last, int K>
    __device__ __forceinline__ void multiply() {
      constexpr int kGroup = First + K, kHere = (Parity + kGroup) % 2;
      constexpr bool kMoreTaps = !Last;
      auto& weight = cursors.weight;
      if constexpr (kGroup % 2 == 0) {
        storage.ring.wait_full(weight.stage, weight.phase);
      }
      issue(x[kHere], 2 * (kGroup % 2));
      cute::warpgroup_wait<1>();
      x[1 - kHere].fence();
      if constexpr (kGroup % 2 == 0) {  // the products of the tile before are done
        release_tile();
      }
      if constexpr (kGroup % 2 == 1 || (Last && K + 1 == Slices)) {
        read = weight.stage;
        weight.advance();
      }
      if constexpr (K + 1 < Slices || kMoreTaps) {
        make<Taps>(x[1 - kHere]);
      }
      if constexpr (K + 2 < Slices || kMoreTaps) {
        fetch_next<Slices, Taps, K + 1>();
      }
    }

    // The group behind that of slice K, the last fetched.
    template <int Slices, bool Taps, int K>
    __device__ __forceinline__ void fetch_next() {
      if constexpr (K % Slices + 1 == Slices) {
        at_tap(kw + 1);
      }
      fetch<Taps, (K + 1) % Slices>();
    }

    __device__ __forceinline__ void at_tap(int next) {
      kw = next;
      chunk = winograd_chunk(pixel + kw, thread % 32 / 16);
    }

    __device__ __forceinline__ void issue(Operands& from, int k) {
      using namespace cute;
      const auto weight = make_tensor(make_smem_ptr(&storage.weight[0][0]), typename Config::WeightLayout{});
      const auto fragment = mma.get_thread_slice(thread).partition_fragment_B(weight);
      from.fence();
      warpgroup_arrive();
      cute::gemm(mma, from.of[0](_, _, 0), fragment(_, _, k, cursors.weight.stage), acc.sums[0]);
      cute::gemm(mma, from.of[1](_, _, 0), fragment(_, _, k + 1, cursors.weight.stage), acc.sums[1]);
      warpgroup_commit_batch();
    }

    // The rows of x that a group's operands are made of.
    template <bool Taps, int K>
    __device__ __forceinline__ void fetch() {
      CUTLASS_PRAGMA_UNROLL
      for (int row = Taps ? 0 : 1; row < (Taps ? 4 : 3); ++row) {
        load_matrix(u[row], box + winograd_place(chunk, K, row));
      }
    }

    template <bool Taps>
    __device__ __forceinline__ void make(Operands& to) {
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
