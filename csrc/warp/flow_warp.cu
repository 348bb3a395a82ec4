// flow_warp on any CUDA device (sm_75 and later); equation in flow_warp.h.
//
// Layouts: mask_logits and volume strided (any layout, expanded batches too). A block owns kVoxels neighbouring voxels
// of one batch element and all their channels. The keypoints' motions, and the tile's logits where a voxel's masks lie
// next to each other, go through shared memory; the kLanes threads of a voxel share its masks and meet in shuffles.
// Then, with channels last and 16-byte vectors, the same threads sample a vector of channels each: eight loads in
// flight, 32-bit offsets, one store; C channels of a voxel are one segment of the output's (B, H, W, D, C). Any other
// layout: threads of neighbouring voxels sample one channel after another. Bound by memory: every logit and
// every output once, the volume through L1 and L2 (neighbouring voxels share most of their corners).
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "warp/flow_warp.h"

#include <cfloat>
#include <tuple>

namespace lpkernels {
namespace {

constexpr int kVoxels = 64;
constexpr int kLanes = 4;
constexpr int kThreads = kVoxels * kLanes;
constexpr int kBatch = 6;  // loads a thread has in flight: all of a tile of up to 24 masks
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kSharedBytes = 48 << 10;  // what a kernel may have without asking

struct Layout {
  bool staged;   // a voxel's masks lie next to each other, voxel after voxel, and fit into shared memory
  bool vectors;  // channels last, whole vectors of 16 bytes, offsets of one batch element in 32 bits
  size_t shared_bytes;
};

Layout layout_of(const FlowWarpShape& shape, const Tensor& volume, int64_t element_size) {
  const int64_t masks = shape.keypoints + 1, motions = 3 * masks * sizeof(float);
  const int64_t tile = kVoxels * masks * sizeof(float);
  STD_TORCH_CHECK(motions <= kSharedBytes, "flow_warp: the CUDA kernel takes at most ", kSharedBytes / 12 - 1,
                  " keypoints, got ", shape.keypoints);
  const auto& ls = shape.logits_strides;
  const bool dense = ls[1] == 1 && ls[4] == masks && ls[3] == shape.width * masks &&
                     ls[2] == int64_t{shape.height} * shape.width * masks;
  const auto whole = [&](int64_t elements) { return elements * element_size % 16 == 0; };
  const bool vectors = shape.channels_last && whole(shape.channels) && whole(shape.volume_strides[4]) &&
                       whole(shape.volume_strides[0]) && reinterpret_cast<uintptr_t>(volume.data_ptr()) % 16 == 0 &&
                       shape.voxels * shape.volume_strides[4] < INT32_MAX;
  const bool staged = dense && motions + tile <= kSharedBytes;
  return {staged, vectors, static_cast<size_t>(motions + (staged ? tile : 0))};
}

template <class Logit>
__device__ void stage(const Logit* from, int count, float* tile) {
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += kThreads * kBatch) {
    float held[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = first + j * kThreads;
      held[j] = i < count ? static_cast<float>(from[i]) : 0.f;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (first + j * kThreads < count) {
        tile[first + j * kThreads] = held[j];
      }
    }
  }
}

// Mean of the motions (3 floats each) under the softmax of one voxel's logits: every lane gets it, every lane must
// call.
template <class Logit>
__device__ void mean_motion(const Logit* logits, int64_t step, const float* motions, int masks, int lane,
                            float mean[3]) {
  float maximum = -FLT_MAX;      // finite: logits of -inf must not make inf - inf
  float sums[4] = {0, 0, 0, 0};  // of the weights relative to the maximum, and of weighted motions x, y, z
#pragma unroll 1
  for (int first = lane; first < masks; first += kLanes * kBatch) {
    float logit[kBatch], higher = maximum;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int k = first + j * kLanes;
      logit[j] = k < masks ? static_cast<float>(logits[k * step]) : -INFINITY;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      higher = fmaxf(higher, logit[j]);
    }
    const float rescale = __expf(maximum - higher);
    maximum = higher;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] *= rescale;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const float* motion = motions + 3 * min(first + j * kLanes, masks - 1);
      const float weight = __expf(logit[j] - maximum);
      sums[0] += weight;
      sums[1] += weight * motion[0];
      sums[2] += weight * motion[1];
      sums[3] += weight * motion[2];
    }
  }
  float highest = maximum;
#pragma unroll
  for (int other = 1; other < kLanes; other *= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, other));
  }
  const float rescale = __expf(maximum - highest);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[i] *= rescale;
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) {
      sums[i] += __shfl_xor_sync(kAllLanes, sums[i], other);
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    mean[axis] = sums[axis + 1] / sums[0];
  }
}

// All channels of one voxel, vectors lane, lane + kLanes, ...; `volume` is its batch element, `out` its place.
template <class T>
__device__ void sample_vectors(const T* volume, const float position[3], const FlowWarpShape& shape, int lane, T* out) {
  constexpr int kWidth = 16 / sizeof(T);
  const AxisPair x = axis_pair(to_voxel(position[0], shape.width), shape.width);
  const AxisPair y = axis_pair(to_voxel(position[1], shape.height), shape.height);
  const AxisPair z = axis_pair(to_voxel(position[2], shape.depth), shape.depth);
  const int pixel = static_cast<int>(shape.volume_strides[4]), row = shape.width * pixel, plane = shape.height * row;
  const T* first = volume + z.first * plane + y.first * row + x.first * pixel;
#pragma unroll 1
  for (int c = lane * kWidth; c < shape.channels; c += kLanes * kWidth) {
    uint4 raw[8];
    float weight[8], sum[kWidth] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int dx = i & 1, dy = (i >> 1) & 1, dz = i >> 2;
      weight[i] = x.weight[dx] * (y.weight[dy] * z.weight[dz]);
      raw[i] = make_uint4(0, 0, 0, 0);
      if (weight[i] != 0.f) {
        raw[i] = __ldg(reinterpret_cast<const uint4*>(first + dz * plane + dy * row + dx * pixel + c));
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const T* values = reinterpret_cast<const T*>(&raw[i]);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sum[j] += weight[i] * static_cast<float>(values[j]);
      }
    }
    uint4 packed;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      reinterpret_cast<T*>(&packed)[j] = static_cast<T>(sum[j]);
    }
    *reinterpret_cast<uint4*>(out + c) = packed;
  }
}

// Channels group, group + kLanes, ... of one voxel, in any layout.
template <class T>
__device__ void sample_channels(const T* volume, const float position[3], const FlowWarpShape& shape, int group,
                                T* out) {
  const Corners corners = corners_at(position, shape);
#pragma unroll 1
  for (int c = group; c < shape.channels; c += kLanes) {
    const T* channel = volume + c * shape.volume_strides[1];
    float value = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (corners.weight[i] != 0.f) {
        value += corners.weight[i] * static_cast<float>(channel[corners.offset[i]]);
      }
    }
    out[c * shape.warped_strides[1]] = static_cast<T>(value);
  }
}

struct Voxel {
  int d, h, w;
};

__device__ Voxel voxel_at(int index, const FlowWarpShape& shape) {
  const int row = index / shape.width;
  return {row / shape.height, row % shape.height, index % shape.width};
}

template <class T>
__device__ T* place_of(T* base, int64_t b, const Voxel& at, const std::array<int64_t, 5>& strides) {
  const int64_t* s = &std::get<0>(strides);
  return base + b * s[0] + at.d * s[2] + at.h * s[3] + at.w * s[4];
}

template <class T, class Logit, bool kVectors>
__global__ void __launch_bounds__(kThreads, kVectors ? 4 : 2)
    flow_warp_kernel(FlowWarpShape shape, bool staged, const Logit* __restrict__ logits,
                     const float* __restrict__ kp_source, const float* __restrict__ kp_driving,
                     const T* __restrict__ volume, T* __restrict__ warped, float* __restrict__ deformation) {
  extern __shared__ float shared[];
  const int masks = shape.keypoints + 1;
  float *motions = shared, *tile = shared + 3 * masks;
  const int first = blockIdx.x * kVoxels, count = min(kVoxels, static_cast<int>(shape.voxels) - first);
  const int64_t b = blockIdx.y;
#pragma unroll 1
  for (int i = threadIdx.x; i < 3 * masks; i += kThreads) {
    const int64_t at = b * shape.keypoints * 3 + i - 3;
    motions[i] = i < 3 ? 0.f : kp_source[at] - kp_driving[at];  // the background rests
  }
  if (staged) {
    stage(logits + b * shape.logits_strides[0] + int64_t{first} * masks, count * masks, tile);
  }
  __syncthreads();

  const int slot = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int local = min(slot, count - 1);  // threads without a voxel repeat the last one: shuffles want whole warps
  const Voxel at = voxel_at(first + local, shape);
  float mean[3], position[3];
  if (staged) {
    mean_motion(tile + local * masks, 1, motions, masks, lane, mean);
  } else {
    mean_motion(place_of(logits, b, at, shape.logits_strides), shape.logits_strides[1], motions, masks, lane, mean);
  }
  deform(mean, at.d, at.h, at.w, shape, position);
  if (deformation != nullptr && slot < count && lane < 3) {
    const float own = lane == 0 ? position[0] : lane == 1 ? position[1] : position[2];
    deformation[(b * shape.voxels + first + slot) * 3 + lane] = own;
  }

  if constexpr (kVectors) {
    if (slot < count) {
      sample_vectors(volume + b * shape.volume_strides[0], position, shape, lane,
                     place_of(warped, b, at, shape.warped_strides));
    }
  } else {
    __shared__ float positions[kVoxels][3];
    if (lane == 0) {
      for (int axis = 0; axis < 3; ++axis) {
        positions[slot][axis] = position[axis];
      }
    }
    __syncthreads();
    const int column = threadIdx.x % kVoxels, group = threadIdx.x / kVoxels;  // neighbours in a warp, not in a quad
    if (column < count) {
      sample_channels(volume + b * shape.volume_strides[0], positions[column], shape, group,
                      place_of(warped, b, voxel_at(first + column, shape), shape.warped_strides));
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
    const Layout layout = layout_of(shape, volume, sizeof(T));
    const auto kernel = layout.vectors ? &flow_warp_kernel<T, Logit, true> : &flow_warp_kernel<T, Logit, false>;
    kernel<<<grid, kThreads, layout.shared_bytes, stream>>>(
        shape, layout.staged, static_cast<const Logit*>(mask_logits.data_ptr()),
        static_cast<const float*>(kp_source.data_ptr()), static_cast<const float*>(kp_driving.data_ptr()),
        static_cast<const T*>(volume.data_ptr()), static_cast<T*>(out.warped.data_ptr()), out.wanted_deformation());
  });
  check_launch("flow_warp");
  return {out.warped, out.deformation};
}

constexpr size_t kPublishedBytes = (3 + kVoxels) * 22 * sizeof(float);  // LivePortrait's 21 keypoints, staged

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
