// The step between two stages of ConvNeXt as the beginning of convnext_stage, whose blocks get their first x by mail:
//
//   a = (x - mean_C x) / sqrt(var_C x + 1e-6),  y = conv2x2(a, W, stride 2) + bias
//
// The second half's product with other factors: a thread block has the same pixels and outputs, and of K = 4 C, tap by
// tap, the same piece of 384, that is, whole taps. A warp normalizes four or eight pixels of y at one
// tap and has all of their channels in registers. Published: 24 to 48 KB of x a block, read behind the kernel ahead,
// while the weights are on their way and a slot of the mail becomes absent.
#pragma once

#include "convnext/pixel_norm.cuh"
#include "convnext/stage_parameters.cuh"

namespace lpkernels::convnext {

template <class Project, int MostChannels>
struct StageStep {
  using Product = typename Project::Product;
  static constexpr int kLanes = MostChannels > 256 ? 8 : 4;  // of a pixel: one tap of so many gives work to all warps
  static constexpr int kPixels = 32 / kLanes;                // of a warp, next to each other
  static constexpr int kVectors = ceil_div(MostChannels, 8 * kLanes);

  // Whether a piece of K has whole taps of so many channels, and the cluster all pieces.
  static bool takes(int channels, int splits) {
    return channels <= MostChannels && Product::kDepth % channels == 0 && 4 * channels <= splits * Product::kDepth;
  }

  // a[vector of 8 k][pixel], zeros where there is no pixel or tap; by all threads. while_loading(): called by all,
  // once.
  template <class While>
  __device__ static void normalize(const ConvNextStage& p, const Project& work, int thread, uint4* a,
                                   While&& while_loading) {
    constexpr int kUnits = Product::kRows / kPixels;
    const int part = thread % 32 / kPixels, vectors = p.step.channels / 8, units = p.step.taps_of_piece * kUnits;
    if (thread / 32 >= units) {
      while_loading();
    }
#pragma unroll 1
    for (int unit = thread / 32; unit < units; unit += kWarps) {
      const int pixel = unit % kUnits * kPixels + thread % kPixels, strip = work.first_strip + pixel / kPatchW;
      const int row = p.expand_tiles_w.quotient(strip);
      const int column = (strip - row * p.expand_tiles_w.value) * kPatchW + pixel % kPatchW;
      const int tap_of_piece = unit / kUnits, tap = work.part * p.step.taps_of_piece + tap_of_piece;
      const bool exists = tap < 4 && strip < p.strips && column < p.width;
      const int y = 2 * row + tap / 2, x = 2 * column + tap % 2;
      const auto* from = reinterpret_cast<const uint4*>(p.x) +
                         int64_t{(work.image * p.step.height + y) * p.step.width + x} * vectors + part;
      uint4 values[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        values[i] = make_uint4(0, 0, 0, 0);
        if (exists && part + i * kLanes < vectors) {
          values[i] = from[i * kLanes];
        }
      }
      if (unit < kWarps) {
        while_loading();
      }
      normalize(values, p.step.channels);
      uint4* to = a + (tap_of_piece * vectors + part) * Product::kRows + pixel;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (part + i * kLanes < vectors) {
          to[i * kLanes * Product::kRows] = values[i];
        }
      }
    }
  }

 private:
  // Of the vectors of a pixel that its lanes have; there are zeros beyond its channels.
  __device__ static void normalize(uint4 (&values)[kVectors], int channels) {
    float2 v[kVectors][4], total = make_float2(0.f, 0.f);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const uint32_t pairs[4] = {values[i].x, values[i].y, values[i].z, values[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[i][j] = floats(pairs[j]);
        total.x += v[i][j].x + v[i][j].y;
        total.y = fmaf(v[i][j].x, v[i][j].x, fmaf(v[i][j].y, v[i][j].y, total.y));
      }
    }
#pragma unroll
    for (int lanes = kPixels; lanes < 32; lanes *= 2) {
      total.x += __shfl_xor_sync(~0u, total.x, lanes);
      total.y += __shfl_xor_sync(~0u, total.y, lanes);
    }
    const float2 norm = norm_from(total, channels);
    const float shift = -norm.x * norm.y;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const auto pair = [&](int j) { return halves(fmaf(v[i][j].x, norm.y, shift), fmaf(v[i][j].y, norm.y, shift)); };
      values[i] = make_uint4(pair(0), pair(1), pair(2), pair(3));
    }
  }
};

}  // namespace lpkernels::convnext
