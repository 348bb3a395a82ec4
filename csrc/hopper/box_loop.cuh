// The main loop for most shapes: one TMA box of x per tap and 64 channels, beside the weights of that tap.
//
// Beyond the image and beyond C TMA writes zeros, which is the padding of both. Bound by the tensor cores, for narrow N
// by filling shared memory.
#pragma once

#include "hopper/products.cuh"

namespace lpkernels::hopper {

template <class Config_>
struct BoxLoop {
  using Config = Config_;
  using Cursors = StageCursor<Config::Stages>;
  static constexpr int kTapsH = 0;  // any

  struct Storage {
    alignas(1024) typename Config::Element x[Config::Stages][Config::BlockM * Config::BlockK];
    alignas(1024) typename Config::Element weight[Config::Stages][Config::BlockN * Config::BlockK];
    RingBarriers<Config::Stages> ring;

    __device__ void init() { ring.init(); }
  };

  static void set_tile(ConvShape& shape) { complete(shape, Config::BlockM); }
  static TensorBox x_box(int64_t pixel_stride, const ConvShape& shape) { return pixel_box(pixel_stride, shape); }

  __device__ static void produce(const ConvMaps& maps, const ConvShape& shape, Storage& storage, const ConvBlock& block,
                                 Cursors& cursor) {
    constexpr int kBytes = (Config::BlockM + Config::BlockN) * Config::BlockK * sizeof(typename Config::Element);
    KStep k = first_step(shape, block);
    for (int step = block.k_begin; step < block.k_end; ++step) {
      uint64_t* full = storage.ring.begin_fill(cursor.stage, cursor.phase, kBytes);
      load_box(maps.x, full, storage.x[cursor.stage], pixel_origin(shape, block, k));
      // Beyond C the box reads the next tap's weights; x is zero there.
      load_box(maps.weight, full, storage.weight[cursor.stage], weight_origin(shape, block, k));
      cursor.advance();
      next_step(shape, block, k);
    }
  }

  template <class Accumulator>
  __device__ static void consume(const ConvShape& shape, Storage& storage, const ConvBlock& block, int thread,
                                 Accumulator& acc, Cursors& cursor) {
    using namespace cute;
    typename Config::Mma mma;
    const auto issue = [&](auto steps) {
      storage.ring.wait_full(cursor.stage, cursor.phase);
      issue_products<Config, decltype(steps)::value>(storage.x[cursor.stage], storage.weight[cursor.stage], thread, mma,
                                                     acc);
    };
    constexpr auto kAllSteps = Int<Config::BlockK / Config::StepK>{};
    // The first box apart: it overwrites the accumulators, and inside the loop that would make ptxas serialize wgmma.
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    issue(kAllSteps);
    if constexpr (Config::Channels > 0) {
      int previous = cursor.stage;
      cursor.advance();
      const auto step = [&](auto steps) {
        issue(steps);
        // One box's products stay in flight: those of the box before are done, its stage can be filled again.
        warpgroup_wait<1>();
        warpgroup_fence_operand(acc);
        storage.ring.release(previous);
        previous = cursor.stage;
        cursor.advance();
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
      storage.ring.release(previous);
    } else {
      // A loop over single boxes that leaves products in flight is serialized too; the other warpgroup fills the gap.
      const auto finish = [&] {
        warpgroup_wait<0>();
        warpgroup_fence_operand(acc);
        storage.ring.release(cursor.stage);
        cursor.advance();
      };
      finish();
      CUTLASS_PRAGMA_NO_UNROLL
      for (int step = block.k_begin + 1; step < block.k_end; ++step) {
        issue(kAllSteps);
        finish();
      }
    }
  }
};

}  // namespace lpkernels::hopper
