// What the kernels that end a SPADE share: x, its statistics and the answer, and the checks of them.
//
//   x may have half the height and width of the answer, and is then read as enlarged (nearest). Its statistics are mean
//   and reciprocal deviation of each channel, or mean and variance of equal parts of its pixels, which are added up
//   here.
#pragma once

#include "common/cuda.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"
#include "hopper/statistics.cuh"

namespace lpkernels {

using namespace hopper;

constexpr int kMostParts = 32;

struct SpadeParams {
  const float* bias;
  const __half* x;
  const float* stats;  // (B, C, 2): mean, rstd; or (B, parts, C, 2): mean and variance of equal parts of the pixels
  __half* out;
  int64_t x_stride, out_stride;
  float negative_slope;
  int x_shift;   // 1: x has half the height and width
  int channels;  // C
  int parts;     // 0: stats are those of the image
};

// A pixel's x and out.
struct SpadeRow {
  const __half* x;
  __half* out;

  SpadeRow() = default;
  __device__ SpadeRow(const SpadeParams& params, const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
    const int shift = params.x_shift, stride = shape.stride_of_y();
    const Pixel y = pixel_of_y(shape, block, at);
    const int64_t line = int64_t{block.b} * (shape.height * stride >> shift) + (y.h >> shift);
    x = params.x + (line * (shape.width * stride >> shift) + (y.w >> shift)) * params.x_stride;
    out = params.out + index_in_y(shape, block, y) * params.out_stride;
  }
};

// A channel's mean and reciprocal deviation. Parts are added up in one pass, for each read of them takes as long as a
// step of the products: their means as differences from the first, so that nothing large is subtracted. Fresh: this
// kernel itself has written them, so that they are not to be read as constants.
template <bool Fresh = false>
__device__ float2 stats_of(const SpadeParams& params, const ConvBlock& block, int channel) {
  constexpr int kOnce = 16;  // parts under way at once
  const auto* stats = reinterpret_cast<const float2*>(params.stats);
  if (params.parts == 0) {
    return __ldg(stats + int64_t{block.b} * params.channels + channel);
  }
  stats += int64_t{block.b} * params.parts * params.channels + channel;
  float origin = 0.f, sum = 0.f, squares = 0.f, variance = 0.f;
  CUTLASS_PRAGMA_NO_UNROLL
  for (int first = 0; first < params.parts; first += kOnce) {
    float2 part[kOnce];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kOnce; ++i) {
      const float2* from = stats + int64_t{min(first + i, params.parts - 1)} * params.channels;
      part[i] = Fresh ? __ldcg(from) : __ldg(from);
    }
    origin = first == 0 ? part[0].x : origin;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kOnce; ++i) {
      const float difference = first + i < params.parts ? part[i].x - origin : 0.f;
      sum += difference;
      squares = fmaf(difference, difference, squares);
      variance += first + i < params.parts ? part[i].y : 0.f;
    }
  }
  const float one = 1.f / static_cast<float>(params.parts), mean = sum * one;
  variance += fmaxf(squares - sum * mean, 0.f);
  return make_float2(origin + mean, rsqrtf(fmaf(variance, one, kInstanceNormEps)));
}

// A call: its activations, its convolution, what the kernel is launched with.
struct SpadeCall {
  Activation actv, x, out;
  ConvShape shape;
  SpadeParams params;
};

// Raises where they do not fit each other; which channels x, out and the weight may have is the caller's to check.
inline SpadeCall spade_call(const char* op, const Tensor& actv_tensor, const Tensor& weight, const Tensor& bias,
                            const Tensor& x_tensor, const Tensor& stats, double negative_slope,
                            const Tensor& out_tensor) {
  const Activation actv = activation(op, "actv", actv_tensor), x = activation(op, "x", x_tensor);
  const Activation out = activation(op, "out", out_tensor);
  const Grid grid = out.height == actv.height ? Grid::kSame : Grid::kFromClasses;
  const ConvShape shape = is_winograd(weight) ? winograd_shape(op, actv, weight) : conv_shape(op, actv, weight, grid);
  const int shift = x.height == out.height && x.width == out.width ? 0 : 1;
  STD_TORCH_CHECK(actv_tensor.dim() == 4 && out.written_by(shape) && x.batch == out.batch &&
                      x.height << shift == out.height && x.width << shift == out.width && x.depth == 1,
                  op, ": out must have the pixels of actv, and x its size or half of it; got ",
                  shape_string(out_tensor), ", ", shape_string(actv_tensor), " and ", shape_string(x_tensor));
  check_floats(op, "bias", bias, {shape.outputs});
  const int64_t parts = stats.dim() == 4 ? stats.size(1) : 0;
  STD_TORCH_CHECK(parts <= kMostParts, op, ": stats may have up to ", kMostParts, " parts, got ", parts);
  if (parts > 0) {
    check_floats(op, "stats", stats, {x.batch, parts, x.channels, 2});
  } else {
    check_floats(op, "stats", stats, {x.batch, x.channels, 2});
  }
  const SpadeParams params{.bias = static_cast<const float*>(bias.data_ptr()),
                           .x = static_cast<const __half*>(x.data),
                           .stats = static_cast<const float*>(stats.data_ptr()),
                           .out = static_cast<__half*>(out.data),
                           .x_stride = x.pixel_stride,
                           .out_stride = out.pixel_stride,
                           .negative_slope = static_cast<float>(negative_slope),
                           .x_shift = shift,
                           .channels = x.channels,
                           .parts = static_cast<int>(parts)};
  return {actv, x, out, shape, params};
}

}  // namespace lpkernels
