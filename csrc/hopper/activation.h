// Channels-last activations as the convolutions take them: (B, H, W, C) or (B, D, H, W, C), half precision, pixels next
// to each other, perhaps a slice of the channels of a wider buffer.
#pragma once

#include "common/stable.h"
#include "hopper/neighbors.h"
#include "hopper/winograd.h"

namespace lpkernels::hopper {

struct Activation {
  void* data;
  int64_t pixel_stride;  // elements
  int batch, depth, height, width, channels;

  // Whether this has the pixels that a convolution of `shape` writes.
  bool written_by(const ConvShape& shape) const {
    const int stride = shape.stride_of_y();
    return batch == shape.batch && depth == shape.depth && height == shape.height * stride &&
           width == shape.width * stride;
  }
};

// Raises where `tensor` is none; vectors of `alignment` elements must be aligned at every pixel.
inline Activation activation(const char* op, const char* name, const Tensor& tensor, int alignment = 8) {
  const int64_t dims = tensor.dim();
  STD_TORCH_CHECK(dims == 4 || dims == 5, op, ": ", name, " must have shape (B, H, W, C) or (B, D, H, W, C), got ",
                  shape_string(tensor));
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Half && tensor.is_cuda() && tensor.numel() > 0, op, ": ", name,
                  " must be float16 on a CUDA device and not empty, got ", shape_string(tensor));
  const int64_t w = tensor.size(dims - 2), h = tensor.size(dims - 3), d = dims == 5 ? tensor.size(1) : 1;
  int64_t p = tensor.size(dims - 1);  // the stride of an axis of one is anything: take the innermost that has more
  for (int64_t dim = 0; dim < dims - 1; ++dim) {
    p = tensor.size(dim) > 1 ? tensor.stride(dim) : p;
  }
  const auto dense = [&](int64_t dim, int64_t stride) { return tensor.size(dim) == 1 || tensor.stride(dim) == stride; };
  STD_TORCH_CHECK(tensor.stride(dims - 1) == 1 && p >= tensor.size(dims - 1) && dense(dims - 3, p * w) &&
                      (dims == 4 || dense(1, p * w * h)) && dense(0, p * w * h * d),
                  op, ": ", name, " must be channels-last with its pixels next to each other");
  STD_TORCH_CHECK(p % alignment == 0 && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % (2 * alignment) == 0, op, ": ",
                  name, " must begin at and be spaced by a multiple of ", alignment, " channels");
  for (int64_t i = 0; i < dims; ++i) {
    STD_TORCH_CHECK(tensor.size(i) < (1 << 24), op, ": ", name, " is too large: ", shape_string(tensor));
  }
  const auto size = [&](int64_t dim) { return static_cast<int>(tensor.size(dim)); };
  return {tensor.data_ptr(), p, size(0), static_cast<int>(d), size(dims - 3), size(dims - 2), size(dims - 1)};
}

// Raises unless `weight` is contiguous and aligned, with the channels of `x` innermost and `dims` dimensions.
inline void check_weight(const char* op, const Activation& x, const Tensor& weight, int64_t dims) {
  STD_TORCH_CHECK(weight.dim() == dims && weight.scalar_type() == ScalarType::Half && weight.is_cuda() &&
                      weight.is_contiguous() && weight.size(dims - 1) == x.channels && x.channels % 8 == 0 &&
                      reinterpret_cast<uintptr_t>(weight.data_ptr()) % 16 == 0,
                  op, ": weight must be contiguous, aligned float16 of ", dims, " dimensions with the ", x.channels,
                  " channels of x, got ", shape_string(weight));
}

// The convolution of `x` with a contiguous weight (O, [3,] taps, taps, C), its taps odd; (16 O, 3, 3, C) from classes.
inline ConvShape conv_shape(const char* op, const Activation& x, const Tensor& weight, Grid grid) {
  const int64_t dims = weight.dim();
  STD_TORCH_CHECK(dims == 4 || dims == 5, op, ": weight must have shape (O, taps..., C), got ", shape_string(weight));
  check_weight(op, x, weight, dims);
  STD_TORCH_CHECK(dims == 5 || x.depth == 1, op, ": a volume needs taps in depth, got weight ", shape_string(weight));
  const auto size = [&](int64_t dim) { return static_cast<int>(weight.size(dim)); };
  ConvShape shape{.batch = x.batch,
                  .depth = x.depth,
                  .height = x.height,
                  .width = x.width,
                  .channels = x.channels,
                  .outputs = 0,
                  .taps_d = dims == 5 ? size(1) : 1,
                  .taps_h = size(dims - 3),
                  .taps_w = size(dims - 2),
                  .grid = grid};
  const int stride = shape.stride_of_x();
  STD_TORCH_CHECK(x.height % stride == 0 && x.width % stride == 0, op, ": ", x.height, "x", x.width,
                  " is no grid of classes, 3 by 3 for each pixel");
  shape.height /= stride;
  shape.width /= stride;
  const bool odd = shape.taps_h % 2 == 1 && shape.taps_w % 2 == 1, three = shape.taps_h == 3 && shape.taps_w == 3;
  STD_TORCH_CHECK(shape.taps_d % 2 == 1 && (grid == Grid::kSame ? odd : three), op,
                  ": weight has the wrong number of taps: ", shape_string(weight));
  STD_TORCH_CHECK(size(0) % shape.phases() == 0, op, ": weight must have its outputs for each of ", shape.phases(),
                  " phases, got ", shape_string(weight));
  shape.outputs = size(0) / shape.phases();
  return shape;
}

// Whether a weight has the tiles of winograd.h: (O, T, 64), or (O, T, 4, 16) where they are made together.
inline bool is_together(const Tensor& weight) {
  return weight.dim() == 4 && weight.size(2) == kWinogradProducts && weight.size(3) == kWinogradSlice;
}
inline bool is_winograd(const Tensor& weight) {
  return weight.dim() == 3 || is_together(weight);
}

// The convolution of `x` with such a weight, of 3x3 taps or, if it has the tiles for them, of 3x3x3.
inline ConvShape winograd_shape(const char* op, const Activation& x, const Tensor& weight) {
  const bool together = is_together(weight);
  const int64_t tiles = winograd_depth_tiles(x.channels, together), depths = weight.size(1) == tiles ? 1 : 3;
  STD_TORCH_CHECK(weight.size(1) == depths * tiles && (together || weight.size(2) == kBoxChannels) &&
                      (depths == 3 || x.depth == 1) && x.channels % kWinogradSlice == 0 &&
                      weight.scalar_type() == ScalarType::Half && weight.is_cuda() && weight.is_contiguous() &&
                      reinterpret_cast<uintptr_t>(weight.data_ptr()) % 16 == 0,
                  op, ": weight must be contiguous, aligned float16 with the tiles for the ", x.channels,
                  " channels of x, ", tiles, " for each tap in depth, as (O, T, 64) or (O, T, 4, 16); got ",
                  shape_string(weight));
  return {.batch = x.batch,
          .depth = x.depth,
          .height = x.height,
          .width = x.width,
          .channels = x.channels,
          .outputs = static_cast<int>(weight.size(0)),
          .taps_d = static_cast<int>(depths),
          .taps_h = kWinogradTaps,
          .taps_w = kWinogradTaps};
}

// The convolution of `x` enlarged with a weight (3, 3, O, [3,] C) of shared products (neighbors.h).
inline ConvShape neighbor_shape(const char* op, const Activation& x, const Tensor& weight) {
  const int64_t dims = weight.dim(), volume = dims == 5;
  STD_TORCH_CHECK((dims == 4 || dims == 5) && weight.size(0) == kNeighbors && weight.size(1) == kNeighbors &&
                      (volume ? weight.size(3) == 3 : x.depth == 1),
                  op, ": weight must have shape (3, 3, O, C), or (3, 3, O, 3, C) for a volume, got ",
                  shape_string(weight));
  check_weight(op, x, weight, dims);
  return {.batch = x.batch,
          .depth = x.depth,
          .height = x.height,
          .width = x.width,
          .channels = x.channels,
          .outputs = static_cast<int>(weight.size(2)),
          .taps_d = volume ? 3 : 1,
          .taps_h = 1,
          .taps_w = 1};
}

inline void check_floats(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == ScalarType::Float &&
              tensor.is_cuda() && tensor.is_contiguous() && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  int64_t i = 0;
  for (const int64_t size : sizes) {
    fits = fits && tensor.size(i++) == size;
  }
  STD_TORCH_CHECK(fits, op, ": ", name, " must be contiguous, aligned float32 on a CUDA device with ", sizes.size(),
                  " dimensions that fit; got ", shape_string(tensor));
}

}  // namespace lpkernels::hopper
