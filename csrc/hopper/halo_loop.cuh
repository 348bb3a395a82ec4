// The main loop that fills shared memory less: rows of x are loaded with their halo, once for all taps of a column.
//
// A block's BlockM pixels are TileH whole rows of TileW, and one TMA box brings TileH + TapsH - 1 rows of 64 channels:
// tap kh reads them kh rows further on. A row is TileW * 128 bytes, a multiple of the 1024 bytes after which the
// swizzle repeats, so a shifted tile is a tile like any other. Weights come box by box in a ring of their own. For
// blocks of few outputs, or whose tile is many rows, where the plain loop waits for its boxes.
#pragma once

#include "hopper/products.cuh"

namespace lpkernels::hopper {

template <int TileH_, int TileW_, int BlockN_, int TapsH_, int XStages_, int WeightStages_, int Channels_ = 0>
struct HaloLoop {
  using Config = ConvConfig<TileH_ * TileW_, BlockN_, WeightStages_, Channels_>;
  static constexpr int TileH = TileH_, TileW = TileW_, kTapsH = TapsH_, XStages = XStages_;
  static constexpr int HaloRows = (TileH + kTapsH - 1) * TileW;  // pixels of an x box
  static constexpr int kRowBytes = Config::BlockK * sizeof(typename Config::Element);
  static_assert(TileW % 8 == 0, "a row must be a whole number of swizzle atoms");

  struct Storage {
    alignas(1024) typename Config::Element x[XStages][HaloRows * Config::BlockK];
    alignas(1024) typename Config::Element weight[Config::Stages][Config::BlockN * Config::BlockK];
    RingBarriers<XStages, 1> x_ring;
    RingBarriers<Config::Stages, 1> ring;

    __device__ void init() {
      x_ring.init();
      ring.init();
    }
  };

  struct Cursors {
    StageCursor<XStages> x;
    StageCursor<Config::Stages> weight;
  };

  static void set_tile(ConvShape& shape) {
    shape.tile_w = TileW;
    shape.tile_h = TileH;
    shape.tile_d = 1;
    complete(shape, Config::BlockM);
  }

  static TensorBox x_box(int64_t pixel_stride, const ConvShape& shape) {
    TensorBox box = pixel_box(pixel_stride, shape);
    box.box[2] = TileH + kTapsH - 1;
    return box;
  }

  static TensorBox weight_box(const ConvShape& shape) { return hopper::weight_box(shape, Config::BlockN); }

  // The boxes of x in the order columns of taps, then channels. Memory is Storage, or has what that has elsewhere.
  template <class Memory>
  __device__ static void load_pixels(const CUtensorMap& map, const ConvShape& shape, Memory& storage,
                                     const ConvBlock& block, Cursors& cursors) {
    const PixelOrigin origin(shape, block);
    for_each_box(shape, [&](const KStep& k) {
      uint64_t* full = storage.x_ring.begin_fill(cursors.x.stage, cursors.x.phase, HaloRows * kRowBytes);
      load_box(map, full, storage.x[cursors.x.stage], origin.at(k));
      cursors.x.advance();
    });
  }

  // For each box of x the weights of its taps in h.
  template <class Memory>
  __device__ static void load_weights(const CUtensorMap& map, const ConvShape& shape, Memory& storage,
                                      const ConvBlock& block, Cursors& cursors) {
    const WeightOrigin origin(shape, block);
    auto& at = cursors.weight;
    for_each_box(shape, [&](KStep k) {
      for (; k.h < kTapsH; ++k.h) {
        uint64_t* full = storage.ring.begin_fill(at.stage, at.phase, Config::BlockN * kRowBytes);
        load_box(map, full, storage.weight[at.stage], origin.at(k));
        at.advance();
      }
    });
  }

  template <class Load>
  __device__ static void for_each_box(const ConvShape& shape, Load&& load) {
    const int boxes = shape.boxes();
    for (int d = 0; d < shape.taps_d; ++d) {
      for (int w = 0; w < shape.taps_w; ++w) {
        for (int box = 0; box < boxes; ++box) {
          load(KStep{.box = box, .d = d, .h = 0, .w = w});
        }
      }
    }
  }

  // Inlined, for at a call ptxas would wait for every wgmma.
  template <class Memory, class Accumulator>
  __device__ __forceinline__ static void consume(const ConvShape& shape, Memory& storage, const ConvBlock&, int thread,
                                                 Accumulator& acc, Cursors& cursors) {
    using namespace cute;
    typename Config::Mma mma;
    mma.accumulate_ = GMMA::ScaleOut::One;
    clear(acc);
    int previous = -1, previous_x = -1;  // what the products in flight read
    const auto box = [&](auto steps) {
      storage.x_ring.wait_full(cursors.x.stage, cursors.x.phase);
      CUTLASS_PRAGMA_UNROLL
      for (int kh = 0; kh < kTapsH; ++kh) {
        storage.ring.wait_full(cursors.weight.stage, cursors.weight.phase);
        issue_products<Config, decltype(steps)::value>(storage.x[cursors.x.stage] + kh * TileW * Config::BlockK,
                                                       storage.weight[cursors.weight.stage], thread, mma, acc);
        // One tap's products stay in flight: those of the tap before are done, what they read can be filled again.
        warpgroup_wait<1>();
        warpgroup_fence_operand(acc);
        if (previous >= 0) {
          storage.ring.release(previous);
        }
        if (kh == 0 && previous_x >= 0) {
          storage.x_ring.release(previous_x);
        }
        previous = cursors.weight.stage;
        cursors.weight.advance();
      }
      previous_x = cursors.x.stage;
      cursors.x.advance();
    };
    constexpr auto kAllSteps = Int<Config::BlockK / Config::StepK>{};
    const int columns = shape.taps_d * shape.taps_w;
    if constexpr (Config::Channels > 0) {
      CUTLASS_PRAGMA_NO_UNROLL
      for (int column = 0; column < columns; ++column) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < Config::FullBoxes; ++i) {
          box(kAllSteps);
        }
        if constexpr (Config::TailSteps > 0) {
          box(Int<Config::TailSteps>{});
        }
      }
    } else {
      int left = columns * shape.boxes();
      CUTLASS_PRAGMA_NO_UNROLL
      do {
        box(kAllSteps);
      } while (--left > 0);
    }
    warpgroup_wait<0>();
    warpgroup_fence_operand(acc);
    storage.ring.release(previous);
    storage.x_ring.release(previous_x);
  }
};

}  // namespace lpkernels::hopper
