// The main loop for most shapes: one TMA box of x per tap and 64 channels, beside the weights of that tap, each sent
// for by a thread of its own.
//
// Beyond the image and beyond C TMA writes zeros, which is the padding of both. Bound by the tensor cores, for narrow N
// by filling shared memory.
#pragma once

#include "hopper/products.cuh"

namespace lpkernels::hopper {

struct NothingMore {};

// More: what a loop made from this one has in a block's shared memory besides.
template <class Config_, class More = NothingMore>
struct BoxLoop {
  using Config = Config_;
  using Cursors = StageCursor<Config::Stages, Config::Clusters>;
  static constexpr int kTapsH = 0;        // any
  static constexpr int kFewestSteps = 8;  // of a block that shares a sum
  static constexpr int kRowBytes = Config::BlockK * sizeof(typename Config::Element);

  struct Stage {
    alignas(1024) typename Config::Element x[Config::BlockM * Config::BlockK];
    alignas(1024) typename Config::Element weight[Config::BlockN * Config::BlockK];
  };

  struct Storage {
    RingBarriers<Config::Stages, 2> ring;
    More more;
    Stage stages[Config::Stages];  // last, so that a kernel of fewer has their memory

    __device__ void init() { ring.init(); }
  };

  static void set_tile(ConvShape& shape) { complete(shape, Config::BlockM); }
  static TensorBox x_box(int64_t pixel_stride, const ConvShape& shape) { return pixel_box(pixel_stride, shape); }
  static TensorBox weight_box(const ConvShape& shape) { return hopper::weight_box(shape, Config::BlockN); }

  __device__ static void use_stages(Cursors& cursor, int count) { cursor.used = count; }

  __device__ static void load_pixels(const CUtensorMap& map, const ConvShape& shape, Storage& storage,
                                     const ConvBlock& block, Cursors& cursor) {
    const PixelOrigin origin(shape, block);
    for_each_step(shape, block, [&](const KStep& k) {
      uint64_t* full = storage.ring.begin_fill(cursor.stage, cursor.phase, Config::BlockM * kRowBytes);
      load_box(map, full, storage.stages[cursor.stage].x, origin.at(k));
      cursor.advance();
    });
  }

  // Beyond C a box holds the next tap's weights; x is zero there.
  __device__ static void load_weights(const CUtensorMap& map, const ConvShape& shape, Storage& storage,
                                      const ConvBlock& block, Cursors& cursor) {
    const WeightOrigin origin(shape, block);
    for_each_step(shape, block, [&](const KStep& k) {
      uint64_t* full = storage.ring.begin_fill(cursor.stage, cursor.phase, Config::BlockN * kRowBytes);
      load_box(map, full, storage.stages[cursor.stage].weight, origin.at(k));
      cursor.advance();
    });
  }

  template <class Load>
  __device__ static void for_each_step(const ConvShape& shape, const ConvBlock& block, Load&& load) {
    const StepOrder order(shape, block);
    KStep k = order.first(block);
    for (int step = block.k_begin; step < block.k_end; ++step) {
      load(k);
      order.next(k);
    }
  }

  // Inlined, for at a call ptxas would wait for every wgmma.
  template <class Accumulator>
  __device__ __forceinline__ static void consume(const ConvShape& shape, Storage& storage, const ConvBlock& block,
                                                 int thread, Accumulator& acc, Cursors& cursor) {
    using namespace cute;
    typename Config::Mma mma;
    const auto issue = [&](auto steps) {
      storage.ring.wait_full(cursor.stage, cursor.phase);
      issue_products<Config, decltype(steps)::value>(storage.stages[cursor.stage].x,
                                                     storage.stages[cursor.stage].weight, thread, mma, acc);
    };
    constexpr auto kAllSteps = Int<Config::BlockK / Config::StepK>{};
    // The first box apart: it overwrites the accumulators, and inside the loop that would make ptxas serialize wgmma.
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    issue(kAllSteps);
    int previous = cursor.stage;
    cursor.advance();
    // One box's products stay in flight: those of the box before are done, its stage can be filled again.
    CUTLASS_PRAGMA_NO_UNROLL
    for (int step = block.k_begin + 1; step < block.k_end; ++step) {
      issue(kAllSteps);
      warpgroup_wait<1>();
      fence_sums(acc);
      storage.ring.release(previous);
      previous = cursor.stage;
      cursor.advance();
    }
    warpgroup_wait<0>();
    fence_sums(acc);
    storage.ring.release(previous);
  }
};

}  // namespace lpkernels::hopper
