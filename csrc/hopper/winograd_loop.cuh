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

template <int BlockN_, int Stages_, int Channels_ = 0>
struct WinogradLoop : WinogradBoxes<WinogradConfig<BlockN_, Stages_, Channels_>, /*Together=*/false> {
  using Config = WinogradConfig<BlockN_, Stages_, Channels_>;
  using Boxes = WinogradBoxes<Config, /*Together=*/false>;
  using Cursors = typename Boxes::Cursors;

  // Inlined, for at a call ptxas would wait for every wgmma.
  template <class Memory>
  __device__ __forceinline__ static void consume(const ConvShape& shape, Memory& storage, const ConvBlock&, int thread,
                                                 typename Config::Accumulator& acc, Cursors& cursors) {
    Walk<Memory> walk(storage, thread, acc, cursors);
    walk.begin();
    if constexpr (Config::TailSteps == 0) {
      walk.even_steps(shape.taps_d * shape.boxes());
    } else {
      walk.depths(shape.taps_d);
    }
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
    const WinogradChunks chunks;
    typename Config::Mma mma;
    Operands x[2];  // of the group whose products are made, and of the next
    uint32_t box;   // with the first row of this warpgroup
    int read = -1;  // the stage of the tile that was multiplied with last

    __device__ __forceinline__ Walk(Memory& storage, int thread, typename Config::Accumulator& acc, Cursors& cursors)
        : storage(storage), acc(acc), cursors(cursors), thread(thread), chunks(thread) {}

    __device__ __forceinline__ void begin() {
      mma.accumulate_ = cute::GMMA::ScaleOut::One;
      cute::clear(acc.sums[0]);
      cute::clear(acc.sums[1]);
      fence_sums();
    }

    // Any number of steps of four slices.
    __device__ __forceinline__ void even_steps(int left) {
      if (left % 2 != 0) {
        step<4, false, 0>();
        --left;
      }
      CUTLASS_PRAGMA_NO_UNROLL
      for (; left > 0; left -= 2) {
        step<4, true, 0>();
        step<4, false, 0>();
      }
    }

    // The steps of each depth, the last of which has fewer slices.
    __device__ __forceinline__ void depths(int count) {
      constexpr int kSteps = Config::FullBoxes + 1;
      CUTLASS_PRAGMA_NO_UNROLL
      for (int left = count; left > 0; --left) {
        if (kSteps % 2 == 0 || left % 2 == 0) {
          depth<true>(std::make_index_sequence<kSteps>());
        } else {
          depth<false>(std::make_index_sequence<kSteps>());
        }
      }
    }

    __device__ __forceinline__ void end() { wait_for_all(); }

   private:
    __device__ __forceinline__ void wait_for_all() {
      cute::warpgroup_wait<0>();
      fence_sums();
      release_tile();
      read = -1;
    }

    // The place of the tile that was multiplied with last, once its products are done.
    __device__ __forceinline__ void release_tile() {
      if (read >= 0) {
        storage.ring.release(read);
      }
    }

    template <bool TapsFirst, size_t... Box>
    __device__ __forceinline__ void depth(std::index_sequence<Box...>) {
      (step<(Box < Config::FullBoxes ? 4 : Config::TailSteps), TapsFirst == (Box % 2 == 0), 0>(), ...);
    }

    // Parity: which of x has the first group's operands.
    template <int Slices, bool TapsFirst, int Parity>
    __device__ __forceinline__ void step() {
      constexpr int kGroups = winograd_groups(Slices), kNext = (Parity + kGroups) % 2;
      storage.x_ring.wait_full(cursors.x.stage, cursors.x.phase);
      box = cute::cast_smem_ptr_to_uint(storage.x[cursors.x.stage]) + winograd_row(thread / 128, 0) * kWinogradRowBytes;
      load<Slices, TapsFirst, 0>(x[Parity]);
      products<Slices, TapsFirst, Parity>(std::make_index_sequence<kGroups>());
      load<Slices, !TapsFirst, 0>(x[kNext]);
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
      products<Slices, !TapsFirst, kNext>(std::make_index_sequence<kGroups>());
      storage.x_ring.release(cursors.x.stage);
      cursors.x.advance();
    }

    template <int Slices, bool Taps, int Parity, size_t... I>
    __device__ __forceinline__ void products(std::index_sequence<I...>) {
      (multiply<Slices, Taps, Parity, static_cast<int>(I)>(), ...);
    }

    // Issues the products of a group and loads the next, while those before it end.
    template <int Slices, bool Taps, int Parity, int I>
    __device__ __forceinline__ void multiply() {
      constexpr int kGroups = winograd_groups(Slices), kHere = (Parity + I) % 2;
      auto& weight = cursors.weight;
      if constexpr (I % 2 == 0) {
        storage.ring.wait_full(weight.stage, weight.phase);
      }
      issue(x[kHere], 2 * (I % 2));
      cute::warpgroup_wait<1>();
      x[1 - kHere].fence();
      if constexpr (I % 2 == 0) {  // the products of the tile before are done
        release_tile();
      }
      if constexpr (I % 2 == 1 || I + 1 == kGroups) {
        read = weight.stage;
        weight.advance();
      }
      if constexpr (I + 1 < kGroups) {
        load<Slices, Taps, I + 1>(x[1 - kHere]);
      }
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

    template <int Slices, bool Taps, int I>
    __device__ __forceinline__ void load(Operands& to) {
      MatrixWords u[4];
      CUTLASS_PRAGMA_UNROLL
      for (int row = Taps ? 0 : 1; row < (Taps ? 4 : 3); ++row) {
        load_matrix(u[row], box + winograd_place(chunks.of[I / Slices], I % Slices, row));
      }
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
