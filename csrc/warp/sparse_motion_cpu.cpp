// sparse_motion: schema, checks, and the CPU kernel. Tables of every keypoint along every axis come first, in one
// thread; then a task owns rows (b, d, h) of the output. Bound by the corners' loads.
#include "warp/sparse_motion.h"

#include <algorithm>
#include <vector>

namespace lpkernels {

namespace {

// Elements between voxels of a channels-last (B, D, H, W, C) tensor with dense voxels, D, H, W of at least 2.
int pixel_of(const char* name, const Tensor& tensor) {
  const int64_t pixel = tensor.stride(3), row = tensor.size(3) * pixel, plane = tensor.size(2) * row;
  const bool dense = (tensor.stride(4) == 1 || tensor.size(4) == 1) && tensor.stride(2) == row &&
                     tensor.stride(1) == plane && pixel >= tensor.size(4);
  STD_TORCH_CHECK(dense, "sparse_motion: ", name, " must be channels-last with dense voxels, got ",
                  shape_string(tensor));
  STD_TORCH_CHECK(tensor.size(1) * plane < INT32_MAX, "sparse_motion: a batch element of ", name,
                  " must span less than 2^31 elements, got ", shape_string(tensor));
  return static_cast<int>(pixel);
}

int64_t batch_step(const Tensor& tensor) {
  return tensor.size(0) == 1 ? 0 : tensor.stride(0);
}

}  // namespace

SparseMotionShape sparse_motion_shape(const Tensor& compressed, const Tensor& background, const Tensor& kp_source,
                                      const Tensor& kp_driving, const Tensor& out) {
  STD_TORCH_CHECK(compressed.dim() == 5 && background.dim() == 5 && out.dim() == 5 && kp_source.dim() == 3,
                  "sparse_motion: compressed, background and out must have 5 dimensions, kp_source 3");
  const int64_t batch = kp_source.size(0), keypoints = kp_source.size(1), channels = compressed.size(4);
  const auto is_keypoints = [&](const Tensor& kp) {
    return kp.dim() == 3 && kp.size(0) == batch && kp.size(1) == keypoints && kp.size(2) == 3 &&
           kp.scalar_type() == ScalarType::Float && kp.is_contiguous();
  };
  STD_TORCH_CHECK(is_keypoints(kp_source) && is_keypoints(kp_driving),
                  "sparse_motion: kp_source and kp_driving must be contiguous float32 of one shape (B, K, 3), got ",
                  shape_string(kp_source), " and ", shape_string(kp_driving));
  STD_TORCH_CHECK(batch > 0 && batch <= 65535 && keypoints > 0 && channels > 0 && keypoints < 65535 && channels < 65535,
                  "sparse_motion: B, K and C must be between 1 and 65534, got ", shape_string(kp_source), " and ",
                  shape_string(compressed));
  STD_TORCH_CHECK(compressed.size(0) == 1 || compressed.size(0) == batch,
                  "sparse_motion: compressed must have batch 1 or ", batch, ", got ", shape_string(compressed));
  STD_TORCH_CHECK(out.size(0) == batch, "sparse_motion: out must have batch ", batch, ", got ", shape_string(out));
  for (int i = 0; i < 5; ++i) {
    STD_TORCH_CHECK(background.size(i) == compressed.size(i),
                    "sparse_motion: background must have the shape of compressed, got ", shape_string(background));
  }
  for (int i = 1; i < 4; ++i) {
    STD_TORCH_CHECK(compressed.size(i) >= 2 && compressed.size(i) <= 65535 && out.size(i) == compressed.size(i),
                    "sparse_motion: compressed and out must share D, H, W, each 2 to 65535; got ",
                    shape_string(compressed), " and ", shape_string(out));
  }
  STD_TORCH_CHECK(out.size(4) >= (keypoints + 1) * (channels + 1), "sparse_motion: out must have at least ",
                  (keypoints + 1) * (channels + 1), " channels, got ", shape_string(out));
  STD_TORCH_CHECK(compressed.scalar_type() == out.scalar_type() && background.scalar_type() == out.scalar_type(),
                  "sparse_motion: compressed, background and out must share a dtype");
  const auto device = [](const Tensor& t) { return t.is_cpu() ? -1 : t.get_device_index(); };
  for (const Tensor* tensor : {&compressed, &background, &kp_source, &kp_driving}) {
    STD_TORCH_CHECK(device(*tensor) == device(out), "sparse_motion: all tensors must be on one device");
  }
  SparseMotionShape shape{};
  shape.batch = static_cast<int>(batch);
  shape.keypoints = static_cast<int>(keypoints);
  shape.channels = static_cast<int>(channels);
  shape.depth = static_cast<int>(compressed.size(1));
  shape.height = static_cast<int>(compressed.size(2));
  shape.width = static_cast<int>(compressed.size(3));
  shape.inverse_depth = 1.f / (shape.depth - 1);
  shape.inverse_height = 1.f / (shape.height - 1);
  shape.inverse_width = 1.f / (shape.width - 1);
  shape.outputs = static_cast<int>(out.size(4));
  shape.compressed_pixel = pixel_of("compressed", compressed);
  shape.background_pixel = pixel_of("background", background);
  shape.out_pixel = pixel_of("out", out);
  shape.compressed_batch = batch_step(compressed);
  shape.background_batch = batch_step(background);
  shape.out_batch = batch_step(out);
  return shape;
}

namespace {

// axis_motion of every keypoint of every batch element at every index of one axis (0: x): (B, K, size).
std::vector<AxisMotion> axis_table(const SparseMotionShape& shape, int axis, int size, const float* kp_source,
                                   const float* kp_driving) {
  const int64_t keypoints = int64_t{shape.batch} * shape.keypoints;
  std::vector<AxisMotion> table(keypoints * size);
  const float inverse = 1.f / (size - 1);
  for (int64_t k = 0; k < keypoints; ++k) {
    for (int i = 0; i < size; ++i) {
      table[k * size + i] = axis_motion(i, size, inverse, kp_source[3 * k + axis], kp_driving[3 * k + axis]);
    }
  }
  return table;
}

template <class T>
void sparse_motion_rows(int64_t begin, int64_t end, const SparseMotionShape& shape, const AxisMotion* zs,
                        const AxisMotion* ys, const AxisMotion* xs, const T* compressed, const T* background, T* out) {
  const int step = shape.channels + 1;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t h = row % shape.height, d = row / shape.height % shape.depth;
    const int64_t b = row / (int64_t{shape.height} * shape.depth);
    const int64_t first = (d * shape.height + h) * shape.width;  // the row's first voxel
    T* to = out + b * shape.out_batch + first * shape.out_pixel;
    const T* still = background + b * shape.background_batch + first * shape.background_pixel;
    for (int w = 0; w < shape.width; ++w) {
      T* voxel = to + int64_t{w} * shape.out_pixel;
      voxel[0] = static_cast<T>(0.f);
      std::copy_n(still + int64_t{w} * shape.background_pixel, shape.channels, voxel + 1);
      std::fill(voxel + (shape.keypoints + 1) * step, voxel + shape.outputs, static_cast<T>(0.f));
    }
    for (int64_t k = b * shape.keypoints; k < (b + 1) * shape.keypoints; ++k) {
      T* motion = to + (k - b * shape.keypoints + 1) * step;
      for (int w = 0; w < shape.width; ++w) {
        move_voxel(zs[k * shape.depth + d], ys[k * shape.height + h], xs[k * shape.width + w], shape,
                   compressed + b * shape.compressed_batch, motion + int64_t{w} * shape.out_pixel);
      }
    }
  }
}

void sparse_motion_cpu(const Tensor& compressed, const Tensor& background, const Tensor& kp_source,
                       const Tensor& kp_driving, const Tensor& out) {
  const SparseMotionShape shape = sparse_motion_shape(compressed, background, kp_source, kp_driving, out);
  const auto* source = static_cast<const float*>(kp_source.data_ptr());
  const auto* driving = static_cast<const float*>(kp_driving.data_ptr());
  const std::vector<AxisMotion> xs = axis_table(shape, 0, shape.width, source, driving);
  const std::vector<AxisMotion> ys = axis_table(shape, 1, shape.height, source, driving);
  const std::vector<AxisMotion> zs = axis_table(shape, 2, shape.depth, source, driving);
  dispatch_float(out.scalar_type(), "sparse_motion", [&](auto element) {
    using T = decltype(element);
    const int64_t rows = int64_t{shape.batch} * shape.depth * shape.height;
    torch::stable::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
      sparse_motion_rows(begin, end, shape, zs.data(), ys.data(), xs.data(),
                         static_cast<const T*>(compressed.data_ptr()), static_cast<const T*>(background.data_ptr()),
                         static_cast<T*>(out.data_ptr()));
    });
  });
}

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "sparse_motion(Tensor compressed, Tensor background, Tensor kp_source, Tensor kp_driving, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CPU, library) {
  library.impl("sparse_motion", TORCH_BOX(&lpkernels::sparse_motion_cpu));
}
