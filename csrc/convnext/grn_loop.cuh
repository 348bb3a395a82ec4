// The main loop of a 1x1 convolution whose x goes through a global response norm on its way to the tensor cores:
//
//   acc[m, n] = sum over channels c of half(x[pixel(m), c] * factors[image(m), c]) * weight[n, c]
//
// Images lie along the depth of the grid, tiles as `set_image_tile` has them, so that the 64 rows of a warpgroup are of
// one image. While the first boxes come, the two warpgroups make the image's factors together, or, of two images, each
// those of its own. Then a warpgroup scales its rows of a box where they lie while the products of the box before are
// made, which adds 32 KB of traffic in shared memory to a step of 16 KB of x: 250 clocks. Channels in multiples of 64.
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

  // A thread's part of a box: 4 vectors of 8 channels of a row. Threads that are neighbours have the same channels of
  // neighbouring rows, whose vectors lie in different banks.
  static constexpr int kVectors = 4;

  // Inlined, like the loop below it.
  template <class Accumulator>
  __device__ __forceinline__ static void consume(const hopper::ConvShape& shape, typename Base::Storage& storage,
                                                 const hopper::ConvBlock& block, int thread, Accumulator& acc,
                                                 typename Base::Cursors& cursor) {
    using namespace cute;
    typename Config::Mma mma;
    const int warpgroup = thread / 128, row = warpgroup * 64 + thread % 64, first = thread / 64 % 2 * kVectors;
    const float4* factors = image_factors(shape, storage, block, thread) + 2 * first;
    const auto issue = [&](int step) {
      float4 own[2 * kVectors];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 2 * kVectors; ++i) {
        own[i] = factors[step * (hopper::kBoxChannels / 4) + i];
      }
      storage.ring.wait_full(cursor.stage, cursor.phase);
      auto* vectors = reinterpret_cast<uint4*>(storage.stages[cursor.stage].x) + row * hopper::kRowVectors;
      uint4 x[kVectors];  // all at once: a load does not pass the store before it
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        x[i] = vectors[hopper::swizzled(row, first + i)];
      }
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        vectors[hopper::swizzled(row, first + i)] = scaled(x[i], own[2 * i], own[2 * i + 1]);
      }
      cutlass::arch::fence_view_async_shared();
      cutlass::arch::NamedBarrier::sync(128, 3 + warpgroup);
      hopper::issue_products<Config, Config::BlockK / Config::StepK>(
          storage.stages[cursor.stage].x, storage.stages[cursor.stage].weight, thread, mma, acc);
    };
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    issue(block.k_begin);
    int previous = cursor.stage;
    cursor.advance();
    CUTLASS_PRAGMA_NO_UNROLL
    for (int step = block.k_begin + 1; step < block.k_end; ++step) {
      issue(step);
      warpgroup_wait<1>();
      hopper::fence_sums(acc);
      storage.ring.release(previous);
      previous = cursor.stage;
      cursor.advance();
    }
    warpgroup_wait<0>();
    hopper::fence_sums(acc);
    storage.ring.release(previous);
  }

 private:
  // Of the image that the thread's warpgroup has rows of.
  __device__ static const float4* image_factors(const hopper::ConvShape& shape, typename Base::Storage& storage,
                                                const hopper::ConvBlock& block, int thread) {
    const GrnFactors grn{shape.squares, shape.gamma, hopper::tiles_of_image(shape), shape.channels};
    const int threads = 256 / shape.tile_d, part = thread / threads, image = std::min(block.d + part, shape.depth - 1);
    const int barrier = shape.tile_d == 1 ? 5 : 3 + part;  // 3 and 4 are the warpgroups' own
    GrnFactors::Memory& memory = storage.more.of_part[part];
    grn.make(image, thread % threads, threads, memory, [&] { cutlass::arch::NamedBarrier::sync(threads, barrier); });
    return memory.factors;
  }

  __device__ static uint4 scaled(const uint4& vector, const float4& low, const float4& high) {
    return {scaled(vector.x, low.x, low.y), scaled(vector.y, low.z, low.w), scaled(vector.z, high.x, high.y),
            scaled(vector.w, high.z, high.w)};
  }

  __device__ static uint32_t scaled(uint32_t pair, float first, float second) {
    const float2 v = floats(pair);
    return halves(v.x * first, v.y * second);
  }
};

}  // namespace lpkernels::convnext
