// flow_warp on any CUDA device (sm_75 and later); equation in flow_warp.h.
//
// Layouts: mask_logits and volume strided (any layout, expanded batches too), outputs contiguous. A block owns
// kVoxels neighbouring voxels of one batch element and all their channels: its first kVoxels threads make the
// deformation (one pass over the K + 1 logits with a running maximum) and put it into shared memory, then
// kGroups threads a voxel sample channels c = group, group + kGroups, ... Bound by memory: every logit and every output
// once, the volume through L2 (eight corners a sample, neighbouring voxels share most of them).
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "warp/flow_warp.h"

#include <cfloat>
#include <tuple>

namespace lpkernels {
namespace {

constexpr int kVoxels = 64;
constexpr int kGroups = 4;
constexpr int kThreads = kVoxels * kGroups;

template <class Logit>
__device__ void deform_voxel(const Logit* logits, const float* kp_source, const float* kp_driving,
                             const FlowWarpShape& shape, float shift[3]) {
  float maximum = -FLT_MAX, sum = 0.f;  // finite: a first logit of -inf must not make inf - inf
  shift[0] = shift[1] = shift[2] = 0.f;
  for (int k = 0; k <= shape.keypoints; ++k) {
    const float logit = static_cast<float>(logits[k * shape.logits_strides[1]]);
    const float higher = fmaxf(maximum, logit);
    // Until now weights were relative to the old maximum: rescale, then add this keypoint's motion.
    const float rescale = __expf(maximum - higher), weight = __expf(logit - higher);
    maximum = higher;
    sum = sum * rescale + weight;
    for (int axis = 0; axis < 3; ++axis) {
      const int i = 3 * (k - 1) + axis;
      const float motion = k > 0 ? __ldg(kp_source + i) - __ldg(kp_driving + i) : 0.f;  // the background rests
      shift[axis] = shift[axis] * rescale + weight * motion;
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    shift[axis] /= sum;
  }
}

template <class T, class Logit>
__global__ void __launch_bounds__(kThreads)
    flow_warp_kernel(FlowWarpShape shape, const Logit* __restrict__ logits, const float* __restrict__ kp_source,
                     const float* __restrict__ kp_driving, const T* __restrict__ volume, T* __restrict__ warped,
                     float* __restrict__ deformation) {
  __shared__ float position[kVoxels][3];
  const int lane = threadIdx.x % kVoxels, group = threadIdx.x / kVoxels;
  const int64_t voxels = shape.voxels, voxel = int64_t{blockIdx.x} * kVoxels + lane, b = blockIdx.y;
  if (group == 0 && voxel < voxels) {
    const int w = static_cast<int>(voxel % shape.width);
    const int h = static_cast<int>(voxel / shape.width % shape.height);
    const int d = static_cast<int>(voxel / (int64_t{shape.width} * shape.height));
    const auto& strides = shape.logits_strides;
    float shift[3];
    deform_voxel(logits + b * strides[0] + d * strides[2] + h * strides[3] + w * strides[4],
                 kp_source + b * shape.keypoints * 3, kp_driving + b * shape.keypoints * 3, shape, shift);
    position[lane][0] = 2.f * w / (shape.width - 1) - 1.f + shift[0];
    position[lane][1] = 2.f * h / (shape.height - 1) - 1.f + shift[1];
    position[lane][2] = 2.f * d / (shape.depth - 1) - 1.f + shift[2];
  }
  __syncthreads();

  // The tile's deformation is contiguous: all threads store it, neighbours next to each other.
  const int64_t first = (b * voxels + int64_t{blockIdx.x} * kVoxels) * 3;
  const int values = static_cast<int>(min(int64_t{kVoxels}, voxels - int64_t{blockIdx.x} * kVoxels)) * 3;
  for (int i = threadIdx.x; i < values; i += kThreads) {
    deformation[first + i] = (&position[0][0])[i];
  }
  if (voxel >= voxels) {
    return;
  }

  const Corners corners = corners_at(position[lane][0], position[lane][1], position[lane][2], shape);
  for (int c = group; c < shape.channels; c += kGroups) {
    const T* channel = volume + b * shape.volume_strides[0] + c * shape.volume_strides[1];
    float value = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (corners.weight[i] != 0.f) {
        value += corners.weight[i] * static_cast<float>(channel[corners.offset[i]]);
      }
    }
    warped[(b * shape.channels + c) * voxels + voxel] = static_cast<T>(value);
  }
}

std::tuple<Tensor, Tensor> flow_warp_cuda(const Tensor& mask_logits, const Tensor& kp_source, const Tensor& kp_driving,
                                          const Tensor& volume) {
  const FlowWarpShape shape = flow_warp_shape(mask_logits, kp_source, kp_driving, volume);
  const torch::stable::accelerator::DeviceGuard guard(volume.get_device_index());
  FlowWarpOutputs out = flow_warp_outputs(shape, volume, kp_source);
  const cudaStream_t stream = current_stream(volume);
  const dim3 grid(static_cast<unsigned>((shape.voxels + kVoxels - 1) / kVoxels), shape.batch);
  dispatch_warp(mask_logits, volume, [&](auto element, auto logit) {
    using T = decltype(element);
    using Logit = decltype(logit);
    flow_warp_kernel<T, Logit><<<grid, kThreads, 0, stream>>>(
        shape, static_cast<const Logit*>(mask_logits.data_ptr()), static_cast<const float*>(kp_source.data_ptr()),
        static_cast<const float*>(kp_driving.data_ptr()), static_cast<const T*>(volume.data_ptr()),
        static_cast<T*>(out.warped.data_ptr()), static_cast<float*>(out.deformation.data_ptr()));
  });
  check_launch("flow_warp");
  return {out.warped, out.deformation};
}

template <class T, class Logit>
RegisterKernel registered(const char* name) {
  return RegisterKernel({name, reinterpret_cast<const void*>(&flow_warp_kernel<T, Logit>), kThreads, 0});
}
const RegisterKernel kernels[] = {registered<float, float>("flow_warp<float>"),
                                  registered<torch::headeronly::Half, torch::headeronly::Half>("flow_warp<half>"),
                                  registered<torch::headeronly::Half, float>("flow_warp<half, float logits>")};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("flow_warp", TORCH_BOX(&lpkernels::flow_warp_cuda));
}
