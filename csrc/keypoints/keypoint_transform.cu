// keypoint_transform on any CUDA device (sm_75 and later); equation and layouts in keypoint_transform.h.
//
// A block owns one batch element: a warp for each of the three angles, then a thread for each entry of R' and for each
// coordinate. Bound by latency: 3 KB in, 1 KB out, four steps that wait for each other.
#include <tuple>

#include "common/cuda.h"
#include "common/dependent_launch.cuh"
#include "common/kernel_table.h"
#include "keypoints/keypoint_transform.h"

namespace lpkernels {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kWarp = 0xffffffffu;
static_assert(kThreads >= 3 * 32 && kThreads >= 2 * kRotation);

// Called by a whole warp; each lane gets the answer.
__device__ float angle(const float* bins, int count, int lane) {
  float maximum = -INFINITY;
  for (int i = lane; i < count; i += 32) {
    maximum = fmaxf(maximum, bins[i]);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(kWarp, maximum, distance));
  }
  float sum = 0.f, weighted = 0.f;
  for (int i = lane; i < count; i += 32) {
    const float weight = expf(bins[i] - maximum);
    sum += weight;
    weighted += weight * static_cast<float>(i);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kWarp, sum, distance);
    weighted += __shfl_xor_sync(kWarp, weighted, distance);
  }
  return degrees_of(weighted / sum);
}

__global__ void __launch_bounds__(kThreads) keypoint_transform_kernel(const __grid_constant__ KeypointTransform p) {
  __shared__ float sine[3], cosine[3], own_R[kRotation], R[kRotation], first_R[kRotation];
  const int64_t b = blockIdx.x;
  const int thread = threadIdx.x, warp = thread / 32;
  let_next_kernel_start();
  wait_for_kernel_before();
  if (p.bins > 0) {
    if (warp < 3) {
      const float degrees = angle(p.driving.at(b) + warp * p.bins, p.bins, thread % 32);
      if (thread % 32 == 0) {
        sine_cosine(degrees, sine + warp, cosine + warp);
      }
    }
    __syncthreads();
    if (thread == 0) {
      rotation(sine, cosine, own_R);
    }
    __syncthreads();
  }
  const MotionView driving = driving_motion(p, b, own_R), first = first_motion(p, b, driving),
                   source = packed_motion(p.source.at(b), p.keypoints);
  if (thread < kRotation) {
    R[thread] = combined_rotation(p, source, driving, first, thread);
  } else if (thread < 2 * kRotation) {
    first_R[thread - kRotation] = combined_rotation(p, source, first, first, thread - kRotation);
  }
  __syncthreads();

  const int coordinates = 3 * p.keypoints;
  float* motion = p.motion + b * (coordinates + kPose);
  for (int i = thread; i < coordinates; i += kThreads) {
    p.x_d[b * coordinates + i] = final_coordinate(p, b, source, driving, first, R, first_R, i);
    motion[i] = driving.exp[i];
  }
  motion += coordinates;
  if (thread < kRotation) {
    motion[thread] = driving.R[thread];
  } else if (thread < kRotation + 3) {
    motion[thread] = driving.t[thread - kRotation];
  } else if (thread == kRotation + 3) {
    motion[thread] = driving.scale[0];
  }
}

std::tuple<Tensor, Tensor> keypoint_transform_cuda(const Tensor& driving, const Tensor& kp, const Tensor& x_s,
                                                   const Tensor& source, const std::optional<Tensor>& first,
                                                   const std::optional<Tensor>& taken,
                                                   const std::optional<Tensor>& multiplier, int64_t bins, bool relative,
                                                   bool pose, bool scale, double driving_multiplier) {
  const torch::stable::accelerator::DeviceGuard guard(driving.get_device_index());
  KeypointTransformOutputs out;
  const KeypointTransform p = keypoint_transform_arguments(driving, kp, x_s, source, first, taken, multiplier, bins,
                                                           relative, pose, scale, driving_multiplier, &out);
  launch_early("keypoint_transform", &keypoint_transform_kernel, p.batch, kThreads, 0, current_stream(driving), p);
  return {out.x_d, out.motion};
}

const RegisterKernel registered({"keypoint_transform", reinterpret_cast<const void*>(&keypoint_transform_kernel),
                                 kThreads, 0});

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("keypoint_transform", TORCH_BOX(&lpkernels::keypoint_transform_cuda));
}
