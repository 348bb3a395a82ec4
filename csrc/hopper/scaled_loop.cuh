// The main loop of a 1x1 convolution whose x is multiplied by a number for each image and channel, `scales` (images,
// channels) in float, on its way to the tensor cores:
//
//   acc[m, n] = sum over channels c of half(x[pixel(m), c] * scales[image(m), c]) * weight[n, c]
//
// Images lie along the depth of the grid, tiles as `set_image_tile` has them, so that the 64 rows of a warpgroup are of
// one image. It scales its rows of a box where they lie while the products of the box before are made, which adds 32 KB
// of traffic in shared memory to a step of 16 KB of x: 250 clocks. Channels in multiples of 64: beyond them there are
// no scales.
#pragma once

#include <cuda_fp16.h>

#include "hopper/box_loop.cuh"
#include "hopper/image_tile.h"

namespace lpkernels::hopper {

template <class Config_>
struct ScaledBoxLoop : BoxLoop<Config_> {
  using Config = Config_;
  using Base = BoxLoop<Config>;
  static_assert(Config::BlockM == kImageTile && Config::BlockK == kBoxChannels);

  // A thread's part of a box: 4 vectors of 8 channels of a row. Threads that are neighbours have the same channels of
  // neighbouring rows, whose vectors lie in different banks.
  static constexpr int kVectors = 4;

  // Inlined, like the loop below it.
  template <class Accumulator>
  __device__ __forceinline__ static void consume(const ConvShape& shape, typename Base::Storage& storage,
                                                 const ConvBlock& block, int thread, Accumulator& acc,
                                                 typename Base::Cursors& cursor) {
    using namespace cute;
    typename Config::Mma mma;
    const int warpgroup = thread / 128, row = warpgroup * 64 + thread % 64, first = thread / 64 % 2 * kVectors;
    const int image = std::min(pixel_at(shape, block, warpgroup * 64).d, shape.depth - 1);
    const float* scales = shape.scales + int64_t{image} * shape.channels + first * 8;
    const auto issue = [&](int step) {
      float4 own[2 * kVectors];
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < 2 * kVectors; ++i) {
        own[i] = __ldg(reinterpret_cast<const float4*>(scales + step * kBoxChannels) + i);
      }
      storage.ring.wait_full(cursor.stage, cursor.phase);
      auto* vectors = reinterpret_cast<uint4*>(storage.stages[cursor.stage].x) + row * kRowVectors;
      uint4 x[kVectors];  // all at once: a load does not pass the store before it
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        x[i] = vectors[swizzled(row, first + i)];
      }
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        vectors[swizzled(row, first + i)] = scaled(x[i], own[2 * i], own[2 * i + 1]);
      }
      cutlass::arch::fence_view_async_shared();
      cutlass::arch::NamedBarrier::sync(128, 3 + warpgroup);
      issue_products<Config, Config::BlockK / Config::StepK>(storage.stages[cursor.stage].x,
                                                             storage.stages[cursor.stage].weight, thread, mma, acc);
    };
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    issue(block.k_begin);
    int previous = cursor.stage;
    cursor.advance();
    CUTLASS_PRAGMA_NO_UNROLL
    for (int step = block.k_begin + 1; step < block.k_end; ++step) {
      issue(step);
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

 private:
  __device__ static uint4 scaled(const uint4& vector, const float4& low, const float4& high) {
    return {scaled(vector.x, low.x, low.y), scaled(vector.y, low.z, low.w), scaled(vector.z, high.x, high.y),
            scaled(vector.w, high.z, high.w)};
  }

  __device__ static uint32_t scaled(uint32_t pair, float first, float second) {
    const float2 v = __half22float2(reinterpret_cast<const __half2&>(pair));
    const __half2 result = __floats2half2_rn(v.x * first, v.y * second);
    return reinterpret_cast<const uint32_t&>(result);
  }
};

}  // namespace lpkernels::hopper
