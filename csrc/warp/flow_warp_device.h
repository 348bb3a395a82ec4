// Steps of the flow_warp kernels (flow_warp.cu): staging, the softmax's mean of the motions, the samplers.
#pragma once

#include "warp/flow_warp.h"
#include "warp/words.h"

namespace lpkernels {

constexpr int kVoxels = 64;  // of a block
constexpr int kLanes = 2;    // threads of a voxel
constexpr int kThreads = kVoxels * kLanes;
constexpr int kBatch = 6;  // masks a thread has in flight: two rounds for 22
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;

// Masks a round of mean_motion takes are all there, the last ones with a motion of zero.
__host__ __device__ constexpr int padded_masks(int masks) {
  return (masks + kLanes * kBatch - 1) / (kLanes * kBatch) * (kLanes * kBatch);
}

// A tile's logits into shared memory: `wide` where `from` is aligned to 16 bytes.
template <class Logit>
__device__ void stage(const Logit* from, int count, bool wide, float* tile) {
  constexpr int kWidth = 16 / sizeof(Logit), kRound = 3;  // loads in flight: all of 22 float masks
  const int vectors = wide ? count / kWidth : 0;
#pragma unroll 1
  for (int first = threadIdx.x; first < vectors; first += kThreads * kRound) {
    uint4 held[kRound];
#pragma unroll
    for (int j = 0; j < kRound; ++j) {
      const int i = first + j * kThreads;
      held[j] = i < vectors ? __ldg(reinterpret_cast<const uint4*>(from) + i) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kRound; ++j) {
      if (first + j * kThreads < vectors) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) {
          tile[(first + j * kThreads) * kWidth + e] = static_cast<float>(reinterpret_cast<const Logit*>(&held[j])[e]);
        }
      }
    }
  }
#pragma unroll 1
  for (int i = vectors * kWidth + threadIdx.x; i < count; i += kThreads) {
    tile[i] = static_cast<float>(from[i]);
  }
}

// Mean of the motions (x, y, z, unused) under the softmax of one voxel's logits: all its lanes must call, and get it.
template <class Logit>
__device__ void mean_motion(const Logit* logits, int64_t step, const float4* motions, int masks, int lane,
                            float mean[3]) {
  float maximum = -1e30f;        // finite: logits of -inf must not make inf - inf
  float sums[4] = {0, 0, 0, 0};  // of the weights times x, y, z and 1, relative to the maximum
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
    const float rescale = exp2_fast((maximum - higher) * kLog2E);
    maximum = higher;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] *= rescale;
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const float4 motion = motions[first + j * kLanes];
      const float weight = exp2_fast(logit[j] * kLog2E - maximum * kLog2E);
      sums[0] += weight * motion.x;
      sums[1] += weight * motion.y;
      sums[2] += weight * motion.z;
      sums[3] += weight;
    }
  }
  float highest = maximum;
#pragma unroll
  for (int other = 1; other < kLanes; other *= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, other));
  }
  const float rescale = exp2_fast((maximum - highest) * kLog2E);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums[i] *= rescale;
#pragma unroll
    for (int other = 1; other < kLanes; other *= 2) {
      sums[i] += __shfl_xor_sync(kAllLanes, sums[i], other);
    }
  }
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    mean[axis] = __fdividef(sums[axis], sums[3]);
  }
}

// All channels of one voxel, vectors lane, lane + kLanes, ...; `volume` is its batch element, `out` its place. A volume
// of finite values is taken for granted: a neighbour beyond the edge is read inside it and weighted with zero.
template <class T>
__device__ void sample_vectors(const T* volume, const float position[3], const FlowWarpShape& shape, int lane, T* out) {
  constexpr int kWidth = 16 / sizeof(T);
  const AxisPair x = axis_pair(to_voxel(position[0], shape.width), shape.width);
  const AxisPair y = axis_pair(to_voxel(position[1], shape.height), shape.height);
  const AxisPair z = axis_pair(to_voxel(position[2], shape.depth), shape.depth);
  const int pixel = static_cast<int>(shape.volume_strides[4]), row = shape.width * pixel, plane = shape.height * row;
  const T* corners[4];  // (z, y) at their lower x
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    corners[i] = volume + ((z.first + (i >> 1)) * plane + (y.first + (i & 1)) * row + x.first * pixel);
    asm("" : "+l"(corners[i]));  // keeps the sums as they are: the compiler would add the batch's offset to all eight
  }
#pragma unroll 1
  for (int c = lane * kWidth; c < shape.channels; c += kLanes * kWidth) {
    uint4 raw[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw[2 * i] = __ldg(reinterpret_cast<const uint4*>(corners[i] + c));
      raw[2 * i + 1] = __ldg(reinterpret_cast<const uint4*>(corners[i] + c + pixel));
    }
    float sum[kWidth] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float weight = x.weight[i & 1] * (y.weight[(i >> 1) & 1] * z.weight[i >> 2]);
      const T* values = reinterpret_cast<const T*>(&raw[i]);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sum[j] += weight * static_cast<float>(values[j]);
      }
    }
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      words[j] = word_of<T>(sum + j * kWidth / 4);
    }
    store_words(out + c, words);
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

}  // namespace lpkernels
