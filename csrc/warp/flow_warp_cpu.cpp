// flow_warp: schema, checks, and the CPU kernel. A task owns one row (b, d, h): its softmax and deformation along w,
// the corners of its W samples, then channel after channel, so that gathers stay in cache. Bound by those gathers.
// Strides decide the layouts of what is read and written; no output layout has code of its own.
#include "warp/flow_warp.h"

#include <algorithm>
#include <tuple>
#include <vector>

namespace lpkernels {

FlowWarpShape flow_warp_shape(const Tensor& mask_logits, const Tensor& kp_source, const Tensor& kp_driving,
                              const Tensor& volume) {
  STD_TORCH_CHECK(mask_logits.dim() == 5, "flow_warp: mask_logits must have shape (B, K + 1, D, H, W), got ",
                  shape_string(mask_logits));
  STD_TORCH_CHECK(volume.dim() == 5, "flow_warp: volume must have shape (B, C, D, H, W), got ", shape_string(volume));
  STD_TORCH_CHECK(mask_logits.scalar_type() == volume.scalar_type() || mask_logits.scalar_type() == ScalarType::Float,
                  "flow_warp: mask_logits must be float32 or have the dtype of volume");
  const int64_t batch = mask_logits.size(0), keypoints = mask_logits.size(1) - 1;
  const auto is_keypoints = [&](const Tensor& kp) {
    return kp.dim() == 3 && kp.size(0) == batch && kp.size(1) == keypoints && kp.size(2) == 3 &&
           kp.scalar_type() == ScalarType::Float && kp.is_contiguous();
  };
  STD_TORCH_CHECK(is_keypoints(kp_source), "flow_warp: kp_source must be contiguous float32 of shape (", batch, ", ",
                  keypoints, ", 3), got ", shape_string(kp_source));
  STD_TORCH_CHECK(is_keypoints(kp_driving), "flow_warp: kp_driving must be contiguous float32 of shape (", batch, ", ",
                  keypoints, ", 3), got ", shape_string(kp_driving));
  STD_TORCH_CHECK(volume.size(0) == batch, "flow_warp: volume must have batch ", batch, " like mask_logits, got ",
                  shape_string(volume));
  for (int i = 2; i < 5; ++i) {
    STD_TORCH_CHECK(volume.size(i) == mask_logits.size(i) && volume.size(i) >= 2,
                    "flow_warp: mask_logits and volume must share D, H, W, each at least 2; got ",
                    shape_string(mask_logits), " and ", shape_string(volume));
  }
  STD_TORCH_CHECK(batch > 0 && batch <= 65535 && keypoints > 0 && volume.size(1) > 0,
                  "flow_warp: batch (at most 65535), keypoints and channels must not be empty; got ",
                  shape_string(mask_logits), " and ", shape_string(volume));
  const auto device = [](const Tensor& t) { return t.is_cpu() ? -1 : t.get_device_index(); };
  STD_TORCH_CHECK(device(kp_source) == device(volume) && device(kp_driving) == device(volume) &&
                      device(mask_logits) == device(volume),
                  "flow_warp: mask_logits, kp_source, kp_driving and volume must be on one device");
  STD_TORCH_CHECK(volume.size(2) * volume.size(3) * volume.size(4) < INT32_MAX,
                  "flow_warp: D * H * W must be below 2^31, got ", shape_string(volume));
  FlowWarpShape shape{};
  shape.batch = static_cast<int>(batch);
  shape.keypoints = static_cast<int>(keypoints);
  shape.channels = static_cast<int>(volume.size(1));
  shape.depth = static_cast<int>(volume.size(2));
  shape.height = static_cast<int>(volume.size(3));
  shape.width = static_cast<int>(volume.size(4));
  shape.inverse_depth = 1.f / (shape.depth - 1);
  shape.inverse_height = 1.f / (shape.height - 1);
  shape.inverse_width = 1.f / (shape.width - 1);
  shape.voxels = volume.size(2) * volume.size(3) * volume.size(4);
  shape.logits_strides = strides_of<5>(mask_logits);
  shape.volume_strides = strides_of<5>(volume);
  const auto& [image, channel, plane, row, voxel] = shape.volume_strides;
  shape.channels_last = channel == 1 && voxel >= shape.channels && row == shape.width * voxel &&
                        plane == int64_t{shape.height} * shape.width * voxel;
  const int64_t c = shape.channels, d = shape.depth, h = shape.height, w = shape.width;
  shape.warped_strides = shape.channels_last ? std::array<int64_t, 5>{h * w * d * c, 1, c, w * d * c, d * c}
                                             : std::array<int64_t, 5>{c * d * h * w, d * h * w, h * w, w, 1};
  return shape;
}

FlowWarpOutputs flow_warp_outputs(const FlowWarpShape& shape, const Tensor& volume, const Tensor& kp_source,
                                  bool want_deformation) {
  const int64_t b = shape.batch, c = shape.channels, d = shape.depth, h = shape.height, w = shape.width;
  const Tensor deformation = want_deformation ? torch::stable::new_empty(kp_source, {b, d, h, w, 3})
                                              : torch::stable::new_empty(kp_source, {0});
  if (!shape.channels_last) {
    return {torch::stable::new_empty(volume, {b, c, d, h, w}), deformation};
  }
  using torch::stable::transpose;
  const Tensor warped = torch::stable::new_empty(volume, {b, h, w, d, c});
  // (B, H, W, D, C) -> (B, C, W, D, H) -> (B, C, D, W, H) -> (B, C, D, H, W)
  return {transpose(transpose(transpose(warped, 1, 4), 2, 3), 3, 4), deformation};
}

namespace {

// Softmax over the K + 1 logits of each of a row's W voxels, and the deformation (W, 3) it makes.
template <class Logit>
void deform_row(const Logit* logits, const float* kp_source, const float* kp_driving, int d, int h,
                const FlowWarpShape& shape, std::vector<float>& buffer, float* deformation) {
  const int width = shape.width;
  const int64_t step_k = shape.logits_strides[1], step_w = shape.logits_strides[4];
  buffer.assign(5 * static_cast<size_t>(width), 0.f);
  float *maximum = buffer.data(), *sum = maximum + width, *shift[3] = {sum + width, sum + 2 * width, sum + 3 * width};
  for (int w = 0; w < width; ++w) {
    maximum[w] = static_cast<float>(logits[w * step_w]);
  }
  for (int k = 1; k <= shape.keypoints; ++k) {
    for (int w = 0; w < width; ++w) {
      maximum[w] = std::max(maximum[w], static_cast<float>(logits[k * step_k + w * step_w]));
    }
  }
  for (int k = 0; k <= shape.keypoints; ++k) {
    float motion[3] = {0.f, 0.f, 0.f};
    for (int axis = 0; k > 0 && axis < 3; ++axis) {
      motion[axis] = kp_source[3 * (k - 1) + axis] - kp_driving[3 * (k - 1) + axis];
    }
    for (int w = 0; w < width; ++w) {
      const float weight = std::exp(static_cast<float>(logits[k * step_k + w * step_w]) - maximum[w]);
      sum[w] += weight;
      for (int axis = 0; axis < 3; ++axis) {
        shift[axis][w] += weight * motion[axis];
      }
    }
  }
  for (int w = 0; w < width; ++w) {
    const float mean[3] = {shift[0][w] / sum[w], shift[1][w] / sum[w], shift[2][w] / sum[w]};
    deform(mean, d, h, w, shape, deformation + 3 * w);
  }
}

template <class T, class Logit>
void flow_warp_rows(int64_t begin, int64_t end, const FlowWarpShape& shape, const Logit* logits, const float* kp_source,
                    const float* kp_driving, const T* volume, T* warped, float* deformation) {
  std::vector<float> buffer, positions(3 * static_cast<size_t>(shape.width));
  std::vector<Corners> corners(shape.width);
  for (int64_t row = begin; row < end; ++row) {
    const int h = static_cast<int>(row % shape.height);
    const int d = static_cast<int>(row / shape.height % shape.depth);
    const int64_t b = row / (int64_t{shape.height} * shape.depth);
    const auto& ls = shape.logits_strides;
    deform_row(logits + b * ls[0] + d * ls[2] + h * ls[3], kp_source + b * shape.keypoints * 3,
               kp_driving + b * shape.keypoints * 3, d, h, shape, buffer, positions.data());
    if (deformation != nullptr) {
      std::copy(positions.begin(), positions.end(), deformation + row * shape.width * 3);
    }
    for (int w = 0; w < shape.width; ++w) {
      corners[w] = corners_at(positions.data() + 3 * w, shape);
    }
    const auto& ws = shape.warped_strides;
    for (int c = 0; c < shape.channels; ++c) {
      const T* channel = volume + b * shape.volume_strides[0] + c * shape.volume_strides[1];
      T* out = warped + b * ws[0] + c * ws[1] + d * ws[2] + h * ws[3];
      for (int w = 0; w < shape.width; ++w) {
        float value = 0.f;
        for (int i = 0; i < 8; ++i) {
          if (corners[w].weight[i] != 0.f) {
            value += corners[w].weight[i] * static_cast<float>(channel[corners[w].offset[i]]);
          }
        }
        out[w * ws[4]] = static_cast<T>(value);
      }
    }
  }
}

std::tuple<Tensor, Tensor> flow_warp_cpu(const Tensor& mask_logits, const Tensor& kp_source, const Tensor& kp_driving,
                                         const Tensor& volume, bool want_deformation) {
  const FlowWarpShape shape = flow_warp_shape(mask_logits, kp_source, kp_driving, volume);
  FlowWarpOutputs out = flow_warp_outputs(shape, volume, kp_source, want_deformation);
  dispatch_warp(mask_logits, volume, [&](auto element, auto logit) {
    using T = decltype(element);
    const auto* logits = static_cast<const decltype(logit)*>(mask_logits.data_ptr());
    const auto* values = static_cast<const T*>(volume.data_ptr());
    const auto* source = static_cast<const float*>(kp_source.data_ptr());
    const auto* driving = static_cast<const float*>(kp_driving.data_ptr());
    auto* warped = static_cast<T*>(out.warped.data_ptr());
    float* deformation = out.wanted_deformation();
    const int64_t rows = int64_t{shape.batch} * shape.depth * shape.height;
    torch::stable::parallel_for(0, rows, 8, [&](int64_t begin, int64_t end) {
      flow_warp_rows(begin, end, shape, logits, source, driving, values, warped, deformation);
    });
  });
  return {out.warped, out.deformation};
}

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "flow_warp(Tensor mask_logits, Tensor kp_source, Tensor kp_driving, Tensor volume, bool want_deformation=True) "
      "-> (Tensor warped, Tensor deformation)");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CPU, library) {
  library.impl("flow_warp", TORCH_BOX(&lpkernels::flow_warp_cpu));
}
