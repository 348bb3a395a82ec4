// keypoint_transform: schema, checks, and the CPU kernel, one batch element after the other.
#include <algorithm>
#include <limits>
#include <tuple>

#include "keypoints/keypoint_transform.h"

namespace lpkernels {

KeypointTransform keypoint_transform_arguments(const Tensor& driving, const Tensor& kp, const Tensor& x_s,
                                               const Tensor& source, const std::optional<Tensor>& first,
                                               const std::optional<Tensor>& taken,
                                               const std::optional<Tensor>& multiplier, int64_t bins, bool relative,
                                               bool pose, bool scale, double driving_multiplier,
                                               KeypointTransformOutputs* out) {
  const char* op = "keypoint_transform";
  STD_TORCH_CHECK(driving.dim() == 2 && driving.size(0) > 0 && driving.size(0) < INT32_MAX,
                  "keypoint_transform: driving must have shape (B, N), got ", shape_string(driving));
  STD_TORCH_CHECK(kp.dim() == 3 && kp.size(1) > 0 && kp.size(1) < (1 << 20),
                  "keypoint_transform: kp must have shape (1 or B, K, 3), got ", shape_string(kp));
  STD_TORCH_CHECK(bins >= 0 && bins < (1 << 20), "keypoint_transform: bins must be 0 or more, got ", bins);
  const int64_t batch = driving.size(0), keypoints = kp.size(1), packed = 3 * keypoints + kPose;
  KeypointTransform p{};
  p.batch = static_cast<int>(batch);
  p.keypoints = static_cast<int>(keypoints);
  p.bins = static_cast<int>(bins);
  p.relative = relative;
  p.pose = pose;
  p.scale = scale;
  p.driving_multiplier = static_cast<float>(driving_multiplier);
  p.driving = rows_of(op, "driving", driving, driving, batch, {bins == 0 ? packed : 3 * bins + 6 * keypoints + 4});
  p.kp = rows_of(op, "kp", kp, driving, batch, {keypoints, 3});
  p.x_s = rows_of(op, "x_s", x_s, driving, batch, {keypoints, 3});
  p.source = rows_of(op, "source", source, driving, batch, {packed});
  if (first) {
    p.first = rows_of(op, "first", *first, driving, batch, {packed});
  }
  if (multiplier) {
    p.multiplier = rows_of(op, "multiplier", *multiplier, driving, batch, {});
  }
  if (taken) {
    STD_TORCH_CHECK(taken->dim() == 2 && taken->size(0) == keypoints && taken->size(1) == 3 &&
                        taken->scalar_type() == ScalarType::Bool && taken->is_contiguous() &&
                        taken->is_cpu() == driving.is_cpu() && taken->get_device_index() == driving.get_device_index(),
                    "keypoint_transform: taken must be contiguous bool of shape (", keypoints,
                    ", 3) on the device of driving, got ", shape_string(*taken));
    p.taken = static_cast<const uint8_t*>(taken->data_ptr());
  }
  *out = {torch::stable::new_empty(driving, {batch, keypoints, 3}), torch::stable::new_empty(driving, {batch, packed})};
  p.x_d = static_cast<float*>(out->x_d.data_ptr());
  p.motion = static_cast<float*>(out->motion.data_ptr());
  return p;
}

namespace {

float angle(const float* bins, int count) {
  float maximum = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < count; ++i) {
    maximum = std::max(maximum, bins[i]);
  }
  float sum = 0.f, weighted = 0.f;
  for (int i = 0; i < count; ++i) {
    const float weight = std::exp(bins[i] - maximum);
    sum += weight;
    weighted += weight * static_cast<float>(i);
  }
  return degrees_of(weighted / sum);
}

void transform_row(const KeypointTransform& p, int64_t b) {
  float own_R[kRotation], R[kRotation], first_R[kRotation];
  if (p.bins > 0) {
    float sine[3], cosine[3];
    for (int axis = 0; axis < 3; ++axis) {
      sine_cosine(angle(p.driving.at(b) + axis * p.bins, p.bins), sine + axis, cosine + axis);
    }
    rotation(sine, cosine, own_R);
  }
  const MotionView driving = driving_motion(p, b, own_R), first = first_motion(p, b, driving),
                   source = packed_motion(p.source.at(b), p.keypoints);
  for (int i = 0; i < kRotation; ++i) {
    R[i] = combined_rotation(p, source, driving, first, i);
    first_R[i] = combined_rotation(p, source, first, first, i);
  }
  const int coordinates = 3 * p.keypoints;
  for (int i = 0; i < coordinates; ++i) {
    p.x_d[b * coordinates + i] = final_coordinate(p, b, source, driving, first, R, first_R, i);
  }
  float* motion = p.motion + b * (coordinates + kPose);
  motion = std::copy_n(driving.exp, coordinates, motion);
  motion = std::copy_n(driving.R, kRotation, motion);
  motion = std::copy_n(driving.t, 3, motion);
  *motion = *driving.scale;
}

std::tuple<Tensor, Tensor> keypoint_transform_cpu(const Tensor& driving, const Tensor& kp, const Tensor& x_s,
                                                  const Tensor& source, const std::optional<Tensor>& first,
                                                  const std::optional<Tensor>& taken,
                                                  const std::optional<Tensor>& multiplier, int64_t bins, bool relative,
                                                  bool pose, bool scale, double driving_multiplier) {
  KeypointTransformOutputs out;
  const KeypointTransform p = keypoint_transform_arguments(driving, kp, x_s, source, first, taken, multiplier, bins,
                                                           relative, pose, scale, driving_multiplier, &out);
  for (int64_t b = 0; b < p.batch; ++b) {
    transform_row(p, b);
  }
  return {out.x_d, out.motion};
}

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "keypoint_transform(Tensor driving, Tensor kp, Tensor x_s, Tensor source, Tensor? first, Tensor? taken, Tensor? "
      "multiplier, int bins, bool relative, bool pose, bool scale, float driving_multiplier) -> (Tensor x_d, Tensor "
      "motion)");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CPU, library) {
  library.impl("keypoint_transform", TORCH_BOX(&lpkernels::keypoint_transform_cpu));
}
