// What conv_act's kernels do to the sums of a convolution, for conv_act itself and for who goes on from there.
//
//   y = act(sum + bias + residual) * gain, and the instance-norm statistics of y, before it is rounded
#pragma once

#include "common/stable.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"
#include "hopper/statistics.cuh"

#include <optional>

namespace lpkernels {

using namespace hopper;

struct ConvAct {
  struct Params {
    const float* bias;
    const __half* residual;  // null: none
    const float* gain;       // null: none
    __half* out;
    float2* partials;  // null: no statistics; (tiles, O) mean and variance
    int64_t residual_stride, out_stride;
    float negative_slope;
    int residual_shift;  // 1: the residual has half the height and width
  };

  static constexpr bool kReads = true;
  static constexpr int kValues = 1;  // bias

  template <class Config>
  static constexpr size_t own_bytes() {
    return statistics_bytes<Config>();
  }

  __device__ static void values(const Params& params, const ConvShape&, const ConvBlock&, int output,
                                float (&values)[kValues]) {
    values[0] = __ldg(params.bias + output);
  }

  struct Row {
    __half* out;
    const __half* residual;
    float gain;
  };

  __device__ static Row row(const Params& params, const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
    const Pixel y = pixel_of_y(shape, block, at);
    const int64_t pixel = index_in_y(shape, block, y);
    Row row{params.out + pixel * params.out_stride, nullptr, 1.f};
    if (params.residual != nullptr) {
      const int shift = params.residual_shift, stride = shape.stride_of_y();
      const int64_t plane = int64_t{block.b} * shape.depth + y.d;
      const int64_t line = plane * (shape.height * stride >> shift) + (y.h >> shift);
      row.residual =
          params.residual + (line * (shape.width * stride >> shift) + (y.w >> shift)) * params.residual_stride;
    }
    if (params.gain != nullptr && inside(shape, at)) {
      row.gain = __ldg(params.gain + pixel);
    }
    return row;
  }

  __device__ static const __half* address(const Params&, const Row& row) { return row.residual; }

  template <int Width>
  __device__ static void apply(const Params& params, const Row& row, const float (&values)[kValues][Width],
                               const HalfBits<Width>& read, float (&v)[Width]) {
    float residual[Width];
    to_floats<Width>(read, residual);  // zeros where there is none
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      v[i] = leaky_relu(v[i] + values[0][i] + residual[i], params.negative_slope) * row.gain;
    }
  }

  template <int Width>
  __device__ static void store(const Params&, const ConvShape&, const Row& row, int output, const float (&v)[Width]) {
    store_vector(row.out + output, v);
  }

  template <class Config, int Width, class Accumulator>
  __device__ static void finish(const Params& params, const ConvShape& shape, const ConvBlock& block,
                                const Accumulator& acc, int thread, unsigned char* memory) {
    if (params.partials != nullptr) {
      column_statistics<Config, Width>(shape, block, acc, thread, memory, params.partials);
    }
  }
};

// Raises unless `residual` has the shape of `out`, or half its height and width.
inline void set_residual(const char* op, ConvAct::Params& params, const Tensor& tensor, const Activation& out) {
  const Activation residual = activation(op, "residual", tensor);
  const int shift = residual.height == out.height && residual.width == out.width ? 0 : 1;
  STD_TORCH_CHECK(residual.batch == out.batch && residual.depth == out.depth &&
                      residual.height << shift == out.height && residual.width << shift == out.width &&
                      residual.channels == out.channels,
                  op, ": residual does not fit out");
  params.residual_shift = shift;
  params.residual = static_cast<const __half*>(residual.data);
  params.residual_stride = residual.pixel_stride;
}

// In how many parts conv_act_cuda can leave an image's statistics; 0: of the whole image alone. Winograd: whether the
// weight is of that form.
int statistics_parts(ConvShape shape, bool winograd);

// conv_act_winograd.cu
void launch_conv_act_winograd(const Activation& x, const Tensor& weight, ConvShape shape, const ConvAct::Params& params,
                              cudaStream_t stream);

void conv_act_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, double negative_slope,
                   const std::optional<Tensor>& residual, const std::optional<Tensor>& gain, const Tensor& out,
                   const std::optional<Tensor>& stats);

}  // namespace lpkernels
