// The layer norm of depthwise_linear over the blocks of a cluster, each of which has some of a pixel's channels: they
// tell each other mean and sum of squared differences of their own (Chan et al. 1979: nothing large is subtracted), and
// then the normalised channels, through distributed shared memory. Every thread has one pixel, with 8 or 16 lanes.
#pragma once

#include "convnext/depthwise_conv.cuh"

namespace lpkernels::convnext {

// The chunks that the blocks of a cluster convolve: block `rank` those numbered rank, rank + cluster, ...
struct Chunks {
  int channels, cluster;
  int most, last;  // chunks of a block, one less after rank `last`, which has the last of all

  __device__ Chunks(int channels, int cluster, int chunks)
      : channels(channels), cluster(cluster), most(share_of(chunks, cluster)), last((chunks - 1) & (cluster - 1)) {}

  __device__ int count(int rank) const { return rank > last ? most - 1 : most; }
  __device__ int chunk(int rank, int i) const { return rank + i * cluster; }
  // First channel of vector j of 8, of those in a row of v; beyond the channels: `channels` or more.
  __device__ int channel(int rank, int j) const { return chunk(rank, j / kVectors) * kChunk + j % kVectors * 8; }
  __device__ int channel_count(int rank) const {
    return rank == last ? channels - (chunk(rank, most - 1) - most + 1) * kChunk : count(rank) * kChunk;
  }
};

__device__ inline void load8(const float* from, float (&v)[8]) {
  *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(from);
  *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(from + 4);
}

// Tells the cluster mean and sum of squared differences of this block's channels: statistics[rank][pixel].
template <int Pixels>
__device__ void share_statistics(const Chunks& chunks, int own, const float* v, int pitch, float2* statistics,
                                 uint64_t* arrivals) {
  constexpr int kLanes = kThreads / Pixels;
  const int lane = static_cast<int>(threadIdx.x % kLanes), pixel = static_cast<int>(threadIdx.x / kLanes);
  const int count = chunks.channel_count(own);  // in multiples of 8
  const auto* row = reinterpret_cast<const float4*>(v + pixel * pitch);
  float sum = 0.f, squares = 0.f;
#pragma unroll 1
  for (int j = lane; j < count / 4; j += kLanes) {
    const float4 values = row[j];
    sum += (values.x + values.y) + (values.z + values.w);
  }
  const float mean = sum_of_lanes<kLanes>(sum) * approximate_reciprocal(static_cast<float>(count));
#pragma unroll 1
  for (int j = lane; j < count / 4; j += kLanes) {
    const float4 values = row[j];
    const float x = values.x - mean, y = values.y - mean, z = values.z - mean, w = values.w - mean;
    squares += fmaf(x, x, y * y) + fmaf(z, z, w * w);
  }
  squares = sum_of_lanes<kLanes>(squares);
  if (lane < chunks.cluster) {
    send(statistics + own * Pixels + pixel, make_float2(mean, squares), lane, arrivals);
  }
}

// Gives the cluster this block's channels of a, normalised with everybody's statistics. Each 8 lanes of a pixel have
// all of its channels, and send them to some of the blocks.
template <int Pixels>
__device__ void share_normalized(const Chunks& chunks, int own, const float* v, int pitch, const float2* statistics,
                                 __half* a, int pitch_a, uint64_t* arrivals) {
  constexpr int kLanes = kThreads / Pixels;
  const int lane = static_cast<int>(threadIdx.x % kLanes), pixel = static_cast<int>(threadIdx.x / kLanes);
  const int rank = lane % 8, vectors = chunks.channel_count(own) / 8;
  const float inverse_count = approximate_reciprocal(static_cast<float>(chunks.channels));
  float count = 0.f;
  float2 part = make_float2(0.f, 0.f);
  if (rank < chunks.cluster) {
    count = static_cast<float>(chunks.channel_count(rank));
    part = statistics[rank * Pixels + pixel];
  }
  const float mean = sum_of_lanes<8>(count * part.x) * inverse_count;
  const float difference = part.x - mean;
  const float squares = sum_of_lanes<8>(fmaf(count * difference, difference, part.y));
  const float scale = rsqrtf(fmaf(squares, inverse_count, kEpsilon));
#pragma unroll 1
  for (int j = lane % 8; j < vectors; j += 8) {
    float values[8];
    load8(v + pixel * pitch + 8 * j, values);
#pragma unroll
    for (float& value : values) {
      value = (value - mean) * scale;
    }
    const uint4 rounded = make_uint4(halves(values[0], values[1]), halves(values[2], values[3]),
                                     halves(values[4], values[5]), halves(values[6], values[7]));
    auto* place = reinterpret_cast<uint4*>(a + pixel * pitch_a + chunks.channel(own, j));
#pragma unroll 1
    for (int to = lane / 8; to < chunks.cluster; to += kLanes / 8) {
      send(place, rounded, to, arrivals);
    }
  }
}

}  // namespace lpkernels::convnext
