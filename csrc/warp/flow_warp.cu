// flow_warp on any CUDA device (sm_75 and later); equation in flow_warp.h.
//
// Layouts: mask_logits and volume strided (any layout, expanded batches too). A block owns kVoxels neighbouring voxels
// of one batch element and all their channels. The keypoints' motions, and the tile's logits where a voxel's masks lie
// next to each other, go through shared memory; the kLanes threads of a voxel share its masks and meet in shuffles.
// Then, with channels last and 16-byte vectors, the same threads sample a vector of channels at a time: eight loads in
// flight, one store; the C channels of a voxel are one segment of the output's (B, H, W, D, C). Any other
// layout: threads of neighbouring voxels sample one channel after another. Memory asks for every logit and every output
// once, and the volume through L1 and L2 (neighbouring voxels share most of their corners); the instructions of
// converting and weighting eight corners a channel take nearly as long, which is why a voxel has few threads.
#include "common/cuda.h"
#include "common/dependent_launch.cuh"
#include "common/kernel_table.h"
#include "warp/flow_warp.h"
#include "warp/flow_warp_device.h"

#include <tuple>

namespace lpkernels {
namespace {

constexpr int64_t kSharedBytes = 47 << 10;  // of the 48 KB a kernel may have without asking; the rest is static

// n / divisor for 0 <= n < 2^31 and divisor >= 2, as a multiplication.
struct Divisor {
  unsigned multiplier, shift;

  explicit Divisor(int divisor) {
    for (shift = 1; (1ll << shift) < divisor; ++shift) {
    }
    multiplier = static_cast<unsigned>(((1ull << (31 + shift)) + divisor - 1) / divisor);
  }
  __device__ int quotient(int n) const { return static_cast<int>(__umulhi(n, multiplier) >> (shift - 1)); }
};

struct Layout {
  bool wide;     // the logits are aligned to 16 bytes
  bool staged;   // a voxel's masks lie next to each other, voxel after voxel, and fit into shared memory
  bool vectors;  // channels last, whole vectors of 16 bytes, offsets of one batch element in 32 bits
  size_t shared_bytes;
  Divisor width, height;
};

Layout layout_of(const FlowWarpShape& shape, const Tensor& mask_logits, const Tensor& volume, int64_t logit_size,
                 int64_t element_size) {
  const int64_t masks = shape.keypoints + 1, motions = padded_masks(shape.keypoints + 1) * sizeof(float4);
  const int64_t tile = kVoxels * masks * sizeof(float);
  STD_TORCH_CHECK(motions <= kSharedBytes, "flow_warp: the CUDA kernel takes at most ",
                  kSharedBytes / sizeof(float4) - 1, " keypoints, got ", shape.keypoints);
  const auto& ls = shape.logits_strides;
  const bool dense = ls[1] == 1 && ls[4] == masks && ls[3] == shape.width * masks &&
                     ls[2] == int64_t{shape.height} * shape.width * masks;
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; };
  const auto whole = [&](int64_t elements) { return elements * element_size % 16 == 0; };
  const bool vectors = shape.channels_last && whole(shape.channels) && whole(shape.volume_strides[4]) &&
                       whole(shape.volume_strides[0]) && aligned(volume) &&
                       shape.voxels * shape.volume_strides[4] < INT32_MAX;
  const bool staged = dense && motions + tile <= kSharedBytes;
  const bool wide = aligned(mask_logits) && ls[0] * logit_size % 16 == 0;
  return {wide,
          staged,
          vectors,
          static_cast<size_t>(motions + (staged ? tile : 0)),
          Divisor(shape.width),
          Divisor(shape.height)};
}

struct Voxel {
  int d, h, w;
};

__device__ Voxel voxel_at(int index, const FlowWarpShape& shape, const Layout& layout) {
  const int row = layout.width.quotient(index), d = layout.height.quotient(row);
  return {d, row - d * shape.height, index - row * shape.width};
}

__device__ int64_t offset_of(const Voxel& at, const std::array<int64_t, 5>& strides) {
  return at.d * std::get<2>(strides) + at.h * std::get<3>(strides) + at.w * std::get<4>(strides);
}

template <class T, class Logit, bool kVectors>
__global__ void __launch_bounds__(kThreads, kVectors ? 8 : 4)
    flow_warp_kernel(FlowWarpShape shape, Layout layout, const Logit* __restrict__ logits,
                     const float* __restrict__ kp_source, const float* __restrict__ kp_driving,
                     const T* __restrict__ volume, T* __restrict__ warped, float* __restrict__ deformation) {
  extern __shared__ float4 motions[];
  const int masks = shape.keypoints + 1, padded = padded_masks(masks);
  float* tile = reinterpret_cast<float*>(motions + padded);
  const int first = blockIdx.x * kVoxels, count = min(kVoxels, static_cast<int>(shape.voxels) - first);
  const int64_t b = blockIdx.y;
  let_next_kernel_start();
  wait_for_kernel_before();
  logits = after_the_wait(logits), volume = after_the_wait(volume);
  kp_source = after_the_wait(kp_source), kp_driving = after_the_wait(kp_driving);
  logits += b * shape.logits_strides[0];
  volume += b * shape.volume_strides[0];
  warped += b * shape.warped_strides[0];
  if (layout.staged) {
    stage(logits + int64_t{first} * masks, count * masks, layout.wide, tile);
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < padded; i += kThreads) {
    const int64_t at = (b * shape.keypoints + i - 1) * 3;
    motions[i] = make_float4(0.f, 0.f, 0.f, 0.f);
    if (i > 0 && i < masks) {  // the background rests
      motions[i].x = kp_source[at] - kp_driving[at];
      motions[i].y = kp_source[at + 1] - kp_driving[at + 1];
      motions[i].z = kp_source[at + 2] - kp_driving[at + 2];
    }
  }
  __syncthreads();

  const int slot = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int local = min(slot, count - 1);  // threads without a voxel repeat the last one: shuffles want whole warps
  const Voxel at = voxel_at(first + local, shape, layout);
  float mean[3], position[3];
  if (layout.staged) {
    mean_motion(tile + local * masks, 1, motions, masks, lane, mean);
  } else {
    mean_motion(logits + offset_of(at, shape.logits_strides), shape.logits_strides[1], motions, masks, lane, mean);
  }
  deform(mean, at.d, at.h, at.w, shape, position);
  if (deformation != nullptr && lane == 0 && slot < count) {
    float* out = deformation + (b * shape.voxels + first + slot) * 3;
    out[0] = position[0];
    out[1] = position[1];
    out[2] = position[2];
  }

  if constexpr (kVectors) {
    if (slot < count) {
      const int place = ((at.h * shape.width + at.w) * shape.depth + at.d) * shape.channels;
      sample_vectors(volume, position, shape, lane, warped + place);
    }
  } else {
    __shared__ float positions[kVoxels][3];
    if (lane == 0) {
      for (int axis = 0; axis < 3; ++axis) {
        positions[slot][axis] = position[axis];
      }
    }
    __syncthreads();
    const int column = threadIdx.x % kVoxels, group = threadIdx.x / kVoxels;  // a warp's voxels are neighbours now
    if (column < count) {
      const Voxel own = voxel_at(first + column, shape, layout);
      sample_channels(volume, positions[column], shape, group, warped + offset_of(own, shape.warped_strides));
    }
  }
}

std::tuple<Tensor, Tensor> flow_warp_cuda(const Tensor& mask_logits, const Tensor& kp_source, const Tensor& kp_driving,
                                          const Tensor& volume, bool want_deformation) {
  const FlowWarpShape shape = flow_warp_shape(mask_logits, kp_source, kp_driving, volume);
  const torch::stable::accelerator::DeviceGuard guard(volume.get_device_index());
  FlowWarpOutputs out = flow_warp_outputs(shape, volume, kp_source, want_deformation);
  const cudaStream_t stream = current_stream(volume);
  const dim3 grid(static_cast<unsigned>((shape.voxels + kVoxels - 1) / kVoxels), shape.batch);
  dispatch_warp(mask_logits, volume, [&](auto element, auto logit) {
    using T = decltype(element);
    using Logit = decltype(logit);
    const Layout layout = layout_of(shape, mask_logits, volume, sizeof(Logit), sizeof(T));
    const auto kernel = layout.vectors ? &flow_warp_kernel<T, Logit, true> : &flow_warp_kernel<T, Logit, false>;
    launch_early("flow_warp", kernel, grid, kThreads, layout.shared_bytes, stream, shape, layout,
                 static_cast<const Logit*>(mask_logits.data_ptr()), static_cast<const float*>(kp_source.data_ptr()),
                 static_cast<const float*>(kp_driving.data_ptr()), static_cast<const T*>(volume.data_ptr()),
                 static_cast<T*>(out.warped.data_ptr()), out.wanted_deformation());
  });
  return {out.warped, out.deformation};
}

// Dynamic shared memory for LivePortrait's 21 keypoints with staged logits.
constexpr size_t kPublishedBytes = padded_masks(22) * sizeof(float4) + kVoxels * 22 * sizeof(float);

template <class T, class Logit, bool kVectors>
RegisterKernel registered(const char* name) {
  const auto kernel = reinterpret_cast<const void*>(&flow_warp_kernel<T, Logit, kVectors>);
  return RegisterKernel({name, kernel, kThreads, kPublishedBytes});
}
using torch::headeronly::Half;
const RegisterKernel kernels[] = {registered<float, float, false>("flow_warp<float>"),
                                  registered<Half, Half, false>("flow_warp<half>"),
                                  registered<Half, float, false>("flow_warp<half, float logits>"),
                                  registered<Half, float, true>("flow_warp<half, float logits, channels last>")};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("flow_warp", TORCH_BOX(&lpkernels::flow_warp_cuda));
}
