// What the main loops of products that two rows of y share (winograd.h) have in common: their boxes, where a thread's
// sums lie, and what it reads.
//
// A block's tile is 4 rows of 64 pixels; one TMA box brings 64 channels of them with their halo, once for the nine taps
// of a depth. Weights come tile by tile in the order of their use. The blocks of a cluster have the same outputs and
// load the tiles in turn, each for all.
#pragma once

#include <cute/arch/cluster_sm90.hpp>

#include "hopper/half_matrices.cuh"
#include "hopper/products.cuh"
#include "hopper/winograd.h"

namespace lpkernels::hopper {

// Channels_: as of ConvConfig; where it is 0, x must have a multiple of 64.
// Cluster_: blocks that load weights for each other.
template <int BlockN_, int Stages_, int Channels_, int Cluster_>
struct WinogradConfig : ConvConfig<kWinogradTileH * kWinogradTileW, BlockN_, Stages_, Channels_> {
  using Base = ConvConfig<kWinogradTileH * kWinogradTileW, BlockN_, Stages_, Channels_>;
  static constexpr int kCluster = Cluster_;
  static constexpr bool kRowPairs = true;
  // Sums of 144 outputs need all there are; producers that fetch statistics need theirs.
  static constexpr int ProducerRegisters = BlockN_ > 128 ? 40 : 56, ConsumerRegisters = BlockN_ > 128 ? 232 : 224;
  using Element = typename Base::Element;
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float,
                                 cute::Shape<cute::_128, cute::Int<BlockN_>, cute::Int<Base::BlockK>>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>(),
      cute::Layout<cute::Shape<cute::_2, cute::_1, cute::_1>>{}));
  using Sum = decltype(cute::partition_fragment_C(Mma{}, cute::Shape<cute::_128, cute::Int<BlockN_>>{}));
  using WeightLayout =
      decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Element>{},
                                   cute::Shape<cute::Int<BlockN_>, cute::Int<Base::BlockK>, cute::Int<Stages_>>{}));

  // Of the two rows of a warpgroup: row winograd_row(warpgroup, i) is sums[i].
  struct Accumulator {
    Sum sums[2];

    __device__ float& operator()(int i) { return sums[i / (BlockN_ / 2)](i % (BlockN_ / 2)); }
    __device__ const float& operator()(int i) const { return sums[i / (BlockN_ / 2)](i % (BlockN_ / 2)); }
  };

  // The tile's pixel that row lane / 4 + 8 s of a thread's sum has.
  static LPKERNELS_HOST_DEVICE int row(int thread, int sum, int s) {
    return winograd_row(thread / 128, sum) * kWinogradTileW + thread % 128 / 32 * 16 + thread % 32 / 4 + 8 * s;
  }
};

// A tile's place is empty when it is in all blocks of the cluster.
template <class Config>
using WeightRing = RingBarriers<Config::Stages, 1, 2 * Config::kCluster>;

// Together: whether the products of both kinds are made together (winograd.h).
template <class Config_, bool Together>
struct WinogradBoxes {
  using Config = Config_;
  using Element = typename Config::Element;
  static constexpr int kTapsH = kWinogradTaps, kXStages = 2;
  static constexpr int kBoxBytes = kWinogradBoxH * kWinogradRowBytes;
  static constexpr int kTileBytes = Config::BlockN * Config::BlockK * sizeof(Element);

  struct Storage {
    alignas(1024) unsigned char x[kXStages][kBoxBytes];
    alignas(1024) Element weight[Config::Stages][Config::BlockN * Config::BlockK];
    RingBarriers<kXStages, 1, 8> x_ring;
    WeightRing<Config> ring;

    __device__ void init() {
      x_ring.init();
      ring.init();
    }
  };

  struct Cursors {
    StageCursor<kXStages> x;
    StageCursor<Config::Stages> weight;
  };

  // Elements of an output's weight.
  static LPKERNELS_HOST_DEVICE int weight_row(const ConvShape& shape) {
    return shape.taps_d * winograd_depth_tiles(shape.channels, Together) * Config::BlockK;
  }

  static void set_tile(ConvShape& shape) { set_winograd_tile(shape); }
  static TensorBox x_box(int64_t pixel_stride, const ConvShape& shape) { return winograd_box(pixel_stride, shape); }
  static TensorBox weight_box(const ConvShape& shape) { return rows_box(weight_row(shape), shape, Config::BlockN); }

  // Memory is Storage, or has what that has elsewhere.
  template <class Memory>
  __device__ static void load_pixels(const CUtensorMap& map, const ConvShape& shape, Memory& storage,
                                     const ConvBlock& block, Cursors& cursors) {
    const PixelOrigin origin(shape, block);
    auto& at = cursors.x;
    for (int d = 0; d < shape.taps_d; ++d) {
      for (int box = 0; box < shape.boxes(); ++box) {
        uint64_t* full = storage.x_ring.begin_fill(at.stage, at.phase, kBoxBytes);
        load_box(map, full, storage.x[at.stage], origin.at(KStep{.box = box, .d = d, .h = 0, .w = 0}));
        at.advance();
      }
    }
  }

  template <class Memory>
  __device__ static void load_weights(const CUtensorMap& map, const ConvShape& shape, Memory& storage,
                                      const ConvBlock& block, Cursors& cursors) {
    const int row = shape.permuted ? block.weight_row / shape.group : block.weight_row;
    const int end = weight_row(shape) / Config::BlockK;
    const int own = Config::kCluster == 1 ? 0 : static_cast<int>(cute::block_rank_in_cluster());
    auto& at = cursors.weight;
    for (int tile = 0; tile < end; ++tile) {
      uint64_t* full = storage.ring.begin_fill(at.stage, at.phase, kTileBytes);
      if (Config::kCluster == 1 || tile % Config::kCluster == own) {
        const int k = tile * Config::BlockK;
        load_box_for_all<Config::kCluster>(
            map, full, storage.weight[at.stage],
            shape.permuted ? std::array<int, 5>{k, 0, 0, 0, row} : std::array<int, 5>{k, row, 0, 0, 0});
      }
      at.advance();
    }
  }
};

// What Count products multiply: 16 pixels by 16 channels of a warp for each.
template <class Element, int Count>
struct WinogradOperands {
  using Fragment = decltype(cute::make_tensor<Element>(
      cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1, cute::_1>{}));
  Fragment of[Count];

  __device__ uint32_t& word(int i, int at) { return reinterpret_cast<uint32_t*>(of[i].data())[at]; }

  __device__ __forceinline__ void fence() {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Count; ++i) {
      cute::warpgroup_fence_operand(of[i]);
    }
  }
};

// What a thread reads, on its way through boxes of x and tiles of weights.
template <class Config, class Memory, class Cursors>
struct WinogradInputs {
  Memory& storage;
  Cursors& cursors;
  const int thread;
  const int pixel;   // of its warp's 16 in a row, the one this lane loads
  uint32_t box;      // with the first row of this warpgroup
  MatrixWords u[4];  // rows of x that the operands of the group behind the next are made of
  int kw;            // the tap in w that is fetched
  uint32_t chunk;    // what this lane loads of a row for it
  int read = -1;     // the stage of the tile that was multiplied with last

  __device__ __forceinline__ WinogradInputs(Memory& storage, Cursors& cursors, int thread)
      : storage(storage), cursors(cursors), thread(thread), pixel(thread % 128 / 32 * 16 + thread % 16) {}

  __device__ __forceinline__ void begin_box() {
    storage.x_ring.wait_full(cursors.x.stage, cursors.x.phase);
    box = cute::cast_smem_ptr_to_uint(storage.x[cursors.x.stage]) + winograd_row(thread / 128, 0) * kWinogradRowBytes;
  }

  // Once operands have been made of all that was fetched of it.
  __device__ __forceinline__ void end_box() {
    storage.x_ring.release(cursors.x.stage);
    cursors.x.advance();
  }

  // The rows of the first group. Outer: all four; those of half sums need but the inner two.
  template <bool Outer>
  __device__ __forceinline__ void fetch_first() {
    at_tap(0);
    fetch<0, Outer>();
  }

  // Those of the group behind that of slice K, the last fetched.
  template <int Slices, int K, bool Outer>
  __device__ __forceinline__ void fetch_next() {
    if constexpr (K % Slices + 1 == Slices) {
      at_tap(kw + 1);
    }
    fetch<(K + 1) % Slices, Outer>();
  }

  __device__ __forceinline__ void begin_tile() { storage.ring.wait_full(cursors.weight.stage, cursors.weight.phase); }

  // With its last products.
  __device__ __forceinline__ void end_tile() {
    read = cursors.weight.stage;
    cursors.weight.advance();
  }

  // The place of the tile that was multiplied with last, in all blocks, once its products are done.
  __device__ __forceinline__ void release_tile() {
    if (read >= 0) {
      storage.ring.template release_in_cluster<Config::kCluster>(read);
    }
  }

  // The same where no later tile's products would do it.
  __device__ __forceinline__ void release_last_tile() {
    release_tile();
    read = -1;
  }

  // The columns of a group's products, by their place in a tile and its stage.
  template <class Mma>
  __device__ __forceinline__ auto columns(const Mma& mma) const {
    using namespace cute;
    const auto weight = make_tensor(make_smem_ptr(&storage.weight[0][0]), typename Config::WeightLayout{});
    return mma.get_thread_slice(thread).partition_fragment_B(weight);
  }

 private:
  __device__ __forceinline__ void at_tap(int next) {
    kw = next;
    chunk = winograd_chunk(pixel + kw, thread % 32 / 16);
  }

  template <int K, bool Outer>
  __device__ __forceinline__ void fetch() {
    CUTLASS_PRAGMA_UNROLL
    for (int row = Outer ? 0 : 1; row < (Outer ? 4 : 3); ++row) {
      load_matrix(u[row], box + winograd_place(chunk, K, row));
    }
  }
};

}  // namespace lpkernels::hopper
