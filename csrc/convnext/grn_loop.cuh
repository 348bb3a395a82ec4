// The main loop of a 1x1 convolution whose x goes through a global response norm on its way to the tensor cores:
//
//   acc[m, n] = sum over channels c of half(x[pixel(m), c] * factors[image(m), c]) * weight[n, c]
//
// Images lie along the depth of the grid, tiles as `set_image_tile` has them, so that the 64 rows of a warpgroup are of
// one image. While the first boxes come, the two warpgroups make the image's factors together, or, of two images, each
// those of its own. Then x goes through registers: a warp loads its rows of a box while the products of the box before
// are made, scales them when these are done, for they stay in the registers that the products read, and multiplies,
// while the other warpgroup does something else. Channels in multiples of 64.
#pragma once

#include "convnext/grn_factors.cuh"
#include "hopper/box_loop.cuh"
#include "hopper/image_tile.h"

namespace lpkernels::convnext {

struct ImageFactors {
  GrnFactors::Memory of_part[2];  // of the threads, one or two
};

template <class Config_>
struct GrnLoop : hopper::BoxLoop<Config_, ImageFactors> {
  using Config = Config_;
  using Base = hopper::BoxLoop<Config, ImageFactors>;
  static_assert(Config::BlockM == hopper::kImageTile && Config::BlockK == hopper::kBoxChannels);

  using Element = typename Config::Element;
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<
          Element, Element, float,
          cute::Shape<cute::Int<Config::BlockM>, cute::Int<Config::BlockN>, cute::Int<Config::BlockK>>,
          cute::GMMA::Major::K, cute::GMMA::Major::K>(),
      cute::Layout<cute::Shape<cute::_2, cute::_1, cute::_1>>{}));
  static constexpr int kSteps = Config::BlockK / Config::StepK;

  // Inlined, like BoxLoop's.
  template <class Accumulator>
  __device__ __forceinline__ static void consume(const hopper::ConvShape& shape, typename Base::Storage& storage,
                                                 const hopper::ConvBlock& block, int thread, Accumulator& acc,
                                                 typename Base::Cursors& cursor) {
    using namespace cute;
    const int lane = thread % 32, row = thread / 32 * 16 + lane % 16;
    const auto* factors = reinterpret_cast<const float2*>(image_factors(shape, storage, block, thread)) + lane % 4;
    Mma mma;
    const auto thread_mma = mma.get_thread_slice(thread);
    auto x = make_tensor<Element>(Shape<Shape<_2, _2, _2>, _1, Int<kSteps>>{});
    auto words = recast<uint32_t>(x);  // of each step two k of row lane / 4 and of the one 8 further, then of k + 8
    uint32_t loaded[kSteps][4];
    const auto load = [&] {
      storage.ring.wait_full(cursor.stage, cursor.phase);
      const auto* vectors = reinterpret_cast<const uint4*>(storage.stages[cursor.stage].x) + row * hopper::kRowVectors;
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        load_matrices(loaded[k], vectors + hopper::swizzled(row, 2 * k + lane / 16));
      }
    };
    const auto multiply = [&](int step) {
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float2 factor = factors[step * (hopper::kBoxChannels / 2) + 8 * k + i / 2 * 4];
          const float2 v = floats(loaded[k][i]);
          words(4 * k + i) = halves(v.x * factor.x, v.y * factor.y);
        }
      }
      const auto weight = make_tensor(make_smem_ptr(storage.stages[cursor.stage].weight),
                                      typename Config::template BoxLayout<Config::BlockN>{});
      const auto fragment_weight = thread_mma.partition_fragment_B(weight);
      warpgroup_fence_operand(x);
      hopper::fence_sums(acc);
      warpgroup_arrive();
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        cute::gemm(mma, x(_, _, k), fragment_weight(_, _, k), acc);
        mma.accumulate_ = GMMA::ScaleOut::One;
      }
      warpgroup_commit_batch();
    };
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    load();
    multiply(block.k_begin);
    int previous = cursor.stage;
    cursor.advance();
    CUTLASS_PRAGMA_NO_UNROLL
    for (int step = block.k_begin + 1; step < block.k_end; ++step) {
      load();
      warpgroup_wait<0>();
      hopper::fence_sums(acc);
      warpgroup_fence_operand(x);
      storage.ring.release(previous);
      multiply(step);
      previous = cursor.stage;
      cursor.advance();
    }
    warpgroup_wait<0>();
    hopper::fence_sums(acc);
    warpgroup_fence_operand(x);
    storage.ring.release(previous);
  }

 private:
  // Of the image that the thread's warpgroup has rows of.
  __device__ static const float4* image_factors(const hopper::ConvShape& shape, typename Base::Storage& storage,
                                                const hopper::ConvBlock& block, int thread) {
    const GrnFactors grn{shape.squares, shape.gamma, hopper::tiles_of_image(shape), shape.channels};
    const int threads = 256 / shape.tile_d, part = thread / threads, image = std::min(block.d + part, shape.depth - 1);
    GrnFactors::Memory& memory = storage.more.of_part[part];
    grn.make(image, thread % threads, threads, memory, [&] { cutlass::arch::NamedBarrier::sync(threads, 3 + part); });
    return memory.factors;
  }
};

}  // namespace lpkernels::convnext
