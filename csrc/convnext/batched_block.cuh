// A ConvNeXt V2 block of many images on Hopper, as three kernels that start while those before them drain:
//
//   a = layer norm(depthwise(x) + taps_bias)      depthwise_norm.cuh
//   h = gelu(a W1^T + bias1), squares             a 1x1 convolution (hopper/conv.cuh), sums of squares by tile
//   y = (h * factors) W2^T + bias2 + x            the same, h scaled on its way to the tensor cores (grn_loop.cuh)
//
// Layouts: as the ops have them, pixels channels-last; squares (B, tiles, N), tiles of 128 pixels of an image or 64 of
// each of two (hopper/image_tile.h). Of 8 published images a product has 2.4 GFLOP in each stage, 4 microseconds of
// tensor cores; h is 25, 13, 6 and 3 MB, which stay in the L2. The first product is bound by the GELU of 12.6 million
// values in the first stage (7 microseconds, at 17 instructions with all that an output needs), half as many in each
// further one; the second by shared memory, through which h and the weights go twice; both, in the last stages, by
// latency.
#pragma once

#include "convnext/depthwise_conv.cuh"
#include "convnext/depthwise_norm.cuh"
#include "convnext/grn_loop.cuh"
#include "convnext/grn_norms.cuh"
#include "convnext/polynomial_gelu.h"
#include "hopper/column_squares.cuh"
#include "hopper/epilogue.cuh"

namespace lpkernels::convnext {

using hopper::ConvBlock;
using hopper::ConvShape;
using hopper::HalfBits;
using hopper::Pixel;

// What both products' epilogues share: a bias for each output, pixels of y next to each other.
struct BiasedPixels {
  static constexpr int kValues = 1;

  template <class Params>
  __device__ static void values(const Params& params, const ConvShape&, const ConvBlock&, int output,
                                float (&values)[kValues]) {
    values[0] = __ldg(params.bias + output);
  }

  __device__ static int64_t place(const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
    return index_in_y(shape, block, at) * shape.outputs;
  }
};

struct LinearGelu : BiasedPixels {
  struct Params {
    const float* bias;
    __half* h;
    float* squares;
  };
  struct Row {
    __half* h;
  };
  static constexpr bool kReads = false;

  template <class Config>
  static constexpr size_t own_bytes() {
    return hopper::squares_bytes<Config>();
  }

  __device__ static Row row(const Params& params, const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
    return {params.h + place(shape, block, at)};
  }

  __device__ static const __half* address(const Params&, const Row&) { return nullptr; }

  // Leaves h as it is rounded, whose squares are added up.
  template <int Width>
  __device__ static void apply(const Params&, const Row&, const float (&values)[kValues][Width], const HalfBits<Width>&,
                               float (&v)[Width]) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      v[i] = polynomial_gelu(v[i] + values[0][i]);
    }
    hopper::to_floats<Width>(hopper::to_halves(v), v);
  }

  template <int Width>
  __device__ static void store(const Params&, const ConvShape&, const Row& row, int output, const float (&v)[Width]) {
    hopper::store_vector(row.h + output, v);
  }

  template <class Config, int Width, class Accumulator>
  __device__ static void finish(const Params& params, const ConvShape& shape, const ConvBlock& block,
                                const Accumulator& acc, int thread, unsigned char* memory) {
    hopper::column_squares<Config, Width>(shape, block, acc, thread, memory, params.squares);
  }
};

struct LinearResidual : BiasedPixels {
  struct Params {
    const float* bias;
    const __half* residual;
    __half* y;
  };
  struct Row {
    const __half* residual;
    __half* y;
  };
  static constexpr bool kReads = true;

  template <class Config>
  static constexpr size_t own_bytes() {
    return 0;
  }

  __device__ static Row row(const Params& params, const ConvShape& shape, const ConvBlock& block, const Pixel& at) {
    const int64_t own = place(shape, block, at);
    return {params.residual + own, params.y + own};
  }

  __device__ static const __half* address(const Params&, const Row& row) { return row.residual; }

  template <int Width>
  __device__ static void apply(const Params&, const Row&, const float (&values)[kValues][Width],
                               const HalfBits<Width>& read, float (&v)[Width]) {
    float residual[Width];
    hopper::to_floats<Width>(read, residual);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Width; ++i) {
      v[i] += values[0][i] + residual[i];
    }
  }

  template <int Width>
  __device__ static void store(const Params&, const ConvShape&, const Row& row, int output, const float (&v)[Width]) {
    hopper::store_vector(row.y + output, v);
  }

  template <class Config, int Width, class Accumulator>
  __device__ static void finish(const Params&, const ConvShape&, const ConvBlock&, const Accumulator&, int,
                                unsigned char*) {}
};

using ExpandEpilogue = hopper::PixelEpilogue<LinearGelu, 8>;
using ProjectEpilogue = hopper::PixelEpilogue<LinearResidual, 8>;
using Expand128 = hopper::BoxLoop<hopper::ConvConfig</*BlockM=*/128, /*BlockN=*/128, /*Stages=*/6>>;
using Expand192 = hopper::BoxLoop<hopper::ConvConfig</*BlockM=*/128, /*BlockN=*/192, /*Stages=*/5>>;
using Project96 =
    GrnLoop<hopper::ConvConfig</*BlockM=*/128, /*BlockN=*/96, /*Stages=*/7, /*Channels=*/0, /*Clusters=*/true>>;

// A linear layer of all images' pixels as a 1x1 convolution.
inline ConvShape linear_shape(int images, int height, int width, int channels, int outputs) {
  ConvShape shape{.batch = 1,
                  .depth = images,
                  .height = height,
                  .width = width,
                  .channels = channels,
                  .outputs = outputs,
                  .taps_d = 1,
                  .taps_h = 1,
                  .taps_w = 1,
                  .permuted = true};
  hopper::set_image_tile(shape);
  return shape;
}

inline ConvShape expand_shape(const DepthwiseLinear& p, int images) {
  return linear_shape(images, p.height, p.width, p.channels, p.outputs);
}

// The columns that the multiprocessors with the most pieces of work have, one piece after the other.
inline int columns_in_turn(const ConvShape& shape, int block_n) {
  return hopper::ceil_div(hopper::blocks(shape, block_n), hopper::multiprocessors()) * block_n;
}

template <class... Parameters>
void launch(const char* op, void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            cudaStream_t stream, Parameters... parameters) {
  launch_clusters(op, kernel, grid, threads, shared_bytes, 1, stream, parameters...);
}

// Whether the current GPU takes many images of so many channels that are widened to so many.
inline bool takes_many_images(int channels, int wide) {
  return hopper::runs_here() && channels % 32 == 0 && channels <= DepthwiseNormTile<4, 6>::kMostChannels &&
         wide % hopper::kBoxChannels == 0 && wide <= GrnFactors::kMostDepth;
}

// Rows of squares for an image.
inline int tiles_of_many_images(const DepthwiseLinear& p, int images) {
  return tiles_of_image(expand_shape(p, images));
}

// The kernels of a block. a: as large as x, may become y. y is not to be x.
inline void launch_batched_block(const char* op, const DepthwiseLinear& expand, const GrnLinear& project, __half* a,
                                 int images, cudaStream_t stream) {
  DepthwiseNorm depthwise{.x = expand.x,
                          .taps = expand.taps,
                          .taps_bias = expand.taps_bias,
                          .a = a,
                          .height = expand.height,
                          .width = expand.width,
                          .channels = expand.channels};
  with_depthwise_norm(expand.channels, [&](auto tile) {
    using Tile = decltype(tile);
    Tile::lay_out(depthwise);
    launch(op, &depthwise_norm_kernel<Tile>, dim3(Tile::tiles(depthwise), images), Tile::kThreads,
           Tile::shared_bytes(depthwise), stream, depthwise);
  });
  const ConvShape wide = expand_shape(expand, images);
  const LinearGelu::Params expanded{.bias = expand.bias, .h = expand.h, .squares = expand.squares};
  if (columns_in_turn(wide, 192) <= columns_in_turn(wide, 128)) {
    hopper::launch_conv<Expand192, ExpandEpilogue>(a, wide.channels, expand.weight, wide, expanded, stream);
  } else {
    hopper::launch_conv<Expand128, ExpandEpilogue>(a, wide.channels, expand.weight, wide, expanded, stream);
  }
  ConvShape narrow = linear_shape(images, expand.height, expand.width, project.depth, project.outputs);
  narrow.squares = expand.squares;
  narrow.gamma = project.gamma;
  narrow.split = hopper::split_for<Project96, ProjectEpilogue>(narrow);
  const LinearResidual::Params projected{.bias = project.bias, .residual = project.residual, .y = project.y};
  hopper::launch_conv<Project96, ProjectEpilogue>(project.x, narrow.channels, project.weight, narrow, projected,
                                                  stream);
}

}  // namespace lpkernels::convnext
