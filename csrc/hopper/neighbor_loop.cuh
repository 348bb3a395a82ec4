// The main loop of products that the phases of an enlarged image share (neighbors.h).
//
//   sums[3 p + q][m, n] = sum over taps in d and channels c of half(difference p along h of half(difference q along w
//                         of x[pixel(m), c])) * weight[3 p + q, n, d, c]
//
// A step is a tap in d and 64 channels: one box of the tile's pixels with their neighbours, and nine boxes of weights.
// The differences go from shared memory through registers to the tensor cores: a warp loads three rows of neighbours of
// its 16 pixels while the products of the three before are made, first the pixels' own row, whose differences along w
// the other two need. Weights stay where they are for all tiles of a block if there is room for all steps of one. Bound
// by shared memory: for each 16 channels nine times the 16 pixels of a warp, and the weights.
#pragma once

#include "hopper/neighbors.h"
#include "hopper/products.cuh"

namespace lpkernels::hopper {

// Phases: of y that are kept along an axis, 2 or 3.
template <int Phases>
struct NeighborConfig : ConvConfig<kNeighborPixels, kNeighborOutputs, /*Stages=*/4, /*Channels=*/0, Phases == 2> {
  using Base = ConvConfig<kNeighborPixels, kNeighborOutputs, 4, 0, Phases == 2>;
  static constexpr int BlockN = Phases * Phases * kNeighborOutputs;  // sums in a tile's answer, 32 for each phase
  static constexpr int ProducerRegisters = 40, ConsumerRegisters = 232;

  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<
          typename Base::Element, typename Base::Element, float,
          cute::Shape<cute::Int<kNeighborPixels>, cute::Int<kNeighborOutputs>, cute::Int<Base::BlockK>>,
          cute::GMMA::Major::K, cute::GMMA::Major::K>(),
      cute::Layout<cute::Shape<cute::_2, cute::_1, cute::_1>>{}));
  using Product = decltype(cute::partition_fragment_C(
      Mma{}, cute::Shape<cute::Int<kNeighborPixels>, cute::Int<kNeighborOutputs>>{}));

  // A thread's products, and what they make: accumulator i of the phases', as Fragment counts them.
  struct Accumulator {
    static constexpr int kOfPhase = kNeighborOutputs / 2;
    Product products[kProducts];

    // The product in whose place a phase is.
    __device__ static constexpr int product(int phase) {
      return Phases == 3 ? phase : 2 * (kNeighbors * (phase / 2) + phase % 2);
    }
    __device__ float operator()(int i) const { return products[product(i / kOfPhase)](i % kOfPhase); }
  };
};

template <int Phases>
struct NeighborLoop {
  using Config = NeighborConfig<Phases>;
  using Element = typename Config::Element;
  static constexpr int kTapsH = 0, kFewestSteps = 2, kXStages = 3;
  static constexpr int kRowBytes = Config::BlockK * sizeof(Element), kSteps = Config::BlockK / Config::StepK;

  struct Stage {
    alignas(1024) Element weight[kProducts][kNeighborOutputs * Config::BlockK];
  };

  struct Storage {
    RingBarriers<kXStages, 1, 8> x_ring;
    RingBarriers<Config::Stages, 1> ring;
    alignas(1024) Element x[kXStages][kNeighborRows * Config::BlockK];
    Stage stages[Config::Stages];  // last, so that a kernel of fewer has their memory

    __device__ void init() {
      x_ring.init();
      ring.init();
      for (auto& box : x) {
        for (int i = 0; i < kRowBytes; i += sizeof(uint4)) {
          reinterpret_cast<uint4*>(box)[(kZeroRow * kRowBytes + i) / sizeof(uint4)] = make_uint4(0, 0, 0, 0);
        }
      }
    }
  };

  struct Cursors {
    StageCursor<kXStages> x;
    StageCursor<Config::Stages, Config::Clusters> weight;
  };

  __device__ static void use_stages(Cursors& cursors, int count) { cursors.weight.used = count; }

  static void set_tile(ConvShape& shape) { set_neighbor_tile(shape); }
  static TensorBox x_box(int64_t pixel_stride, const ConvShape& shape) { return neighbor_box(pixel_stride, shape); }
  static TensorBox weight_box(const ConvShape& shape) { return neighbor_weight_box(shape); }

  __device__ static void load_pixels(const CUtensorMap& map, const ConvShape& shape, Storage& storage,
                                     const ConvBlock& block, Cursors& cursors) {
    const NeighborBox box(shape);
    for_each_step(shape, block, [&](const KStep& k) {
      uint64_t* full = storage.x_ring.begin_fill(cursors.x.stage, cursors.x.phase, box.rows(shape) * kRowBytes);
      load_box(map, full, storage.x[cursors.x.stage], box.at(shape, block, k));
      cursors.x.advance();
    });
  }

  __device__ static void load_weights(const CUtensorMap& map, const ConvShape& shape, Storage& storage,
                                      const ConvBlock& block, Cursors& cursors) {
    if (keeps_weights(shape, block) && !block.first) {
      return;
    }
    const WeightOrigin origin(shape, block);
    const int apart = shape.outputs / shape.group;
    auto& at = cursors.weight;
    for_each_step(shape, block, [&](const KStep& k) {
      Stage& stage = storage.stages[at.stage];
      uint64_t* full = storage.ring.begin_fill(at.stage, at.phase, sizeof(stage.weight));
      std::array<int, 5> from = origin.at(k);
      CUTLASS_PRAGMA_UNROLL
      for (int product = 0; product < kProducts; ++product) {
        load_box(map, full, stage.weight[product], from);
        from[4] += apart;
      }
      at.advance();
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
                                                 int thread, Accumulator& acc, Cursors& cursors) {
    using namespace cute;
    typename Config::Mma mma;
    const auto thread_mma = mma.get_thread_slice(thread);
    mma.accumulate_ = GMMA::ScaleOut::One;
    CUTLASS_PRAGMA_UNROLL
    for (auto& product : acc.products) {
      clear(product);
    }
    const Rows rows(shape, thread);
    auto& in_x = cursors.x;
    auto& in_weight = cursors.weight;
    const bool keeps = keeps_weights(shape, block);
    if (keeps) {
      in_weight.stage = 0;
      in_weight.phase = 0;
    }
    // Differences, each loaded while the group of products before the one before it is made. Those of the pixels' own
    // rows are needed for both others.
    Differences own[2], before, after;
    const auto issue = [&](Differences& x, int p, int k) {
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < kNeighbors; ++q) {
        warpgroup_fence_operand(acc.products[kNeighbors * p + q]);
        warpgroup_fence_operand(x.of[q]);
      }
      const auto weight = make_tensor(make_smem_ptr(storage.stages[in_weight.stage].weight[0]), WeightLayout{});
      const auto fragment = thread_mma.partition_fragment_B(weight);
      warpgroup_arrive();
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < kNeighbors; ++q) {
        const int product = kNeighbors * p + q;
        cute::gemm(mma, x.of[q](_, _, 0), fragment(_, _, k, product), acc.products[product]);
      }
      warpgroup_commit_batch();
    };
    // All groups of products but the latest are done, that of `x` and p among them.
    const auto finish = [&](Differences& x, int p) {
      warpgroup_wait<1>();
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < kNeighbors; ++q) {
        warpgroup_fence_operand(acc.products[kNeighbors * p + q]);
        warpgroup_fence_operand(x.of[q]);
      }
    };
    storage.x_ring.wait_full(in_x.stage, in_x.phase);
    own[0].load(storage.x[in_x.stage], rows, 1, 0);
    before.load(storage.x[in_x.stage], rows, 0, 0);
    own[0].subtract_own();
    int left = block.k_end - block.k_begin, read = -1;  // the stage of the step before
    CUTLASS_PRAGMA_NO_UNROLL
    do {
      storage.ring.wait_full(in_weight.stage, in_weight.phase);
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        Differences &here = own[k % 2], &next = own[1 - k % 2];
        const bool last = k + 1 == kSteps;
        issue(here, 1, k);
        before.subtract_own();
        before.subtract(here);
        finish(after, 2);
        if (k == 0 && read >= 0) {
          storage.ring.release(read);
        }
        after.load(storage.x[in_x.stage], rows, 2, k);
        issue(before, 0, k);
        const int stage = in_x.stage;
        if (last && left > 1) {
          in_x.advance();
          storage.x_ring.wait_full(in_x.stage, in_x.phase);
        }
        next.load(storage.x[in_x.stage], rows, 1, (k + 1) % kSteps);
        after.subtract_own();
        after.subtract(here);
        issue(after, 2, k);
        finish(before, 0);
        before.load(storage.x[in_x.stage], rows, 0, (k + 1) % kSteps);
        next.subtract_own();
        if (last) {
          storage.x_ring.release(stage);
        }
      }
      read = keeps ? -1 : in_weight.stage;
      in_weight.advance();
    } while (--left > 0);
    in_x.advance();
    warpgroup_wait<0>();
    CUTLASS_PRAGMA_UNROLL
    for (auto& product : acc.products) {
      warpgroup_fence_operand(product);
    }
    if (read >= 0) {
      storage.ring.release(read);
    }
  }

 private:
  using WeightLayout = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_K_SW128_Atom<Element>{},
      cute::Shape<cute::Int<kNeighborOutputs>, cute::Int<Config::BlockK>, cute::Int<kProducts>>{}));

  // Whether all tiles of a block have the same outputs, and their weights fit into the stages.
  __device__ static bool keeps_weights(const ConvShape& shape, const ConvBlock& block) {
    const int blocks = static_cast<int>(gridDim.x);
    return shape.split == 1 && block.k_end <= Config::Stages &&
           shape.by_columns.quotient(blocks) * shape.by_columns.value == blocks;
  }

  // Where this lane's row of a 16 x 16 matrix lies in a box of x, for each neighbour: bytes, without the 16 channels.
  struct Rows {
    uint32_t place[kProducts];

    __device__ Rows(const ConvShape& shape, int thread) {
      const NeighborBox box(shape);
      const int lane = thread % 32, m = thread / 32 * 16 + lane % 16;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kProducts; ++i) {
        const int row = box.row(shape, m, i / kNeighbors - 1, i % kNeighbors - 1);
        place[i] = row * kRowBytes + ((lane / 16 ^ row % 8) << 4);
      }
    }
  };

  // Of 16 pixels by 16 channels of a warp: first x and its neighbours along w, then their differences.
  struct Differences {
    using Fragment = decltype(cute::make_tensor<Element>(
        cute::Shape<cute::Shape<cute::_2, cute::_2, cute::_2>, cute::_1, cute::_1>{}));
    Fragment of[kNeighbors];

    __device__ uint32_t& word(int q, int i) { return reinterpret_cast<uint32_t*>(of[q].data())[i]; }

    // Neighbour p along h.
    __device__ void load(const Element* box, const Rows& rows, int p, int k) {
      const uint32_t base = cute::cast_smem_ptr_to_uint(box);
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < kNeighbors; ++q) {
        const uint32_t from = base + (rows.place[kNeighbors * p + q] ^ k << 5);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word(q, 0)), "=r"(word(q, 1)), "=r"(word(q, 2)), "=r"(word(q, 3))
                     : "r"(from));
      }
    }
    // The neighbours along w less x itself.
    __device__ void subtract_own() {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 4; ++i) {
        word(0, i) = difference(word(0, i), word(1, i));
        word(2, i) = difference(word(2, i), word(1, i));
      }
    }
    __device__ void subtract(Differences& other) {
      CUTLASS_PRAGMA_UNROLL
      for (int q = 0; q < kNeighbors; ++q) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 4; ++i) {
          word(q, i) = difference(word(q, i), other.word(q, i));
        }
      }
    }
    __device__ static uint32_t difference(uint32_t a, uint32_t b) {
      uint32_t result;
      asm("sub.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
      return result;
    }
  };
};

}  // namespace lpkernels::hopper
