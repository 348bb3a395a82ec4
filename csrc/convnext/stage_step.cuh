// The step between two stages of ConvNeXt as the beginning of convnext_stage, whose blocks get their first x by mail:
//
//   a = (x - mean_C x) / sqrt(var_C x + 1e-6),  y = conv2x2(a, W, stride 2) + bias
//
// The second half's product with other factors: a thread block has the same pixels and outputs, and of K = 4 C, tap by
// tap, the same piece of 384, that is, whole taps. A warp normalizes eight pixels of y at one tap, four lanes each, and
// has all of their channels in registers. Published: 24 to 48 KB of x a block, read behind the kernel ahead, while the
// weights are on their way and a slot of the mail becomes absent.
#pragma once

#include "convnext/stage_parameters.cuh"

namespace lpkernels::convnext {

template <class Project, int MostChannels>
struct StageStep {
  using Product = typename Project::Product;
  static constexpr int kLanes = 4;  // of a pixel
  static constexpr int kVectors = ceil_div(MostChannels, 8 * kLanes);

  // Whether a piece of K has whole taps of so many channels, and the cluster all pieces.
  static bool takes(int channels, int splits) {
    return channels <= MostChannels && Product::kDepth % channels == 0 && 4 * channels <= splits * Product::kDepth;
  }

  // a[vector of 8 k][pixel], zeros where there is no pixel or tap; by all threads.
  __device__ static void normalize(const ConvNextStage& p, const Project& work, int thread, uint4* a) {
    constexpr int kStrips = Project::kGroups;
    const int lane = thread % 32, pixel = lane % kPatchW, part = lane / kPatchW, vectors = p.step.channels / 8;
#pragma unroll 1
    for (int unit = thread / 32; unit < p.step.taps_of_piece * kStrips; unit += kWarps) {
      const int strip = work.first_strip + unit % kStrips, row = p.expand_tiles_w.quotient(strip);
      const int column = (strip - row * p.expand_tiles_w.value) * kPatchW + pixel;
      const int tap_of_piece = unit / kStrips, tap = work.part * p.step.taps_of_piece + tap_of_piece;
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
      normalize(values, part, p.step.channels);
      uint4* to = a + (tap_of_piece * vectors + part) * Product::kRows + unit % kStrips * kPatchW + pixel;
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (part + i * kLanes < vectors) {
          to[i * kLanes * Product::kRows] = values[i];
        }
      }
    }
  }

 private:
  // Of the vectors of a pixel that four lanes have.
  __device__ static void normalize(uint4 (&values)[kVectors], int part, int channels) {
    const float inverse_count = approximate_reciprocal(static_cast<float>(channels));
    float sum = 0.f, squares = 0.f;
    for_pairs(values, part, channels, [&](float2 v) { sum += v.x + v.y; });
    const float mean = sum_of_parts(sum) * inverse_count;
    for_pairs(values, part, channels, [&](float2 v) {
      const float x = v.x - mean, y = v.y - mean;
      squares = fmaf(x, x, fmaf(y, y, squares));
    });
    const float scale = rsqrtf(fmaf(sum_of_parts(squares), inverse_count, kEpsilon));
#pragma unroll
    for (uint4& v : values) {
      for (uint32_t* pair : {&v.x, &v.y, &v.z, &v.w}) {
        const float2 own = floats(*pair);
        *pair = halves((own.x - mean) * scale, (own.y - mean) * scale);
      }
    }
  }

  template <class Call>
  __device__ static void for_pairs(const uint4 (&values)[kVectors], int part, int channels, Call&& call) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if ((part + i * kLanes) * 8 < channels) {
        for (const uint32_t pair : {values[i].x, values[i].y, values[i].z, values[i].w}) {
          call(floats(pair));
        }
      }
    }
  }

  // Over the lanes of a pixel.
  __device__ static float sum_of_parts(float v) {
    v += __shfl_xor_sync(~0u, v, kPatchW);
    return v + __shfl_xor_sync(~0u, v, 2 * kPatchW);
  }
};

}  // namespace lpkernels::convnext
