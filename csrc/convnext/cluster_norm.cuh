// The layer norm of depthwise_linear over the blocks of a cluster, each of which has some of a pixel's channels: they
// tell each other mean and sum of squared differences of their own (Chan et al. 1979: nothing large is subtracted), and
// then the normalised channels, through distributed shared memory. Eight lanes share a pixel.
#pragma once

#include "convnext/depthwise_conv.cuh"

namespace lpkernels::convnext {

// The chunks that the blocks of a cluster convolve: block `rank` those numbered rank, rank + cluster, ...
struct Chunks {
  int channels, cluster;
  int most, last;  // chunks of a block, one less after rank `last`, which has the last of all

  __device__ Chunks(int channels, int cluster, int chunks)
      : channels(channels), cluster(cluster), most(ceil_div(chunks, cluster)), last((chunks - 1) % cluster) {}

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

// Sum over the 8 lanes of a pixel.
__device__ inline float sum_of_lanes(float v) {
#pragma unroll
  for (int lanes = 1; lanes < 8; lanes *= 2) {
    v += __shfl_xor_sync(~0u, v, lanes);
  }
  return v;
}

// Tells the cluster mean and sum of squared differences of this block's channels: statistics[rank][pixel].
template <int Pixels>
__device__ void share_statistics(const Chunks& chunks, int own, const float* v, int pitch, float2* statistics,
                                 uint64_t* arrivals) {
  const int lane = static_cast<int>(threadIdx.x) % 8, vectors = chunks.count(own) * kVectors;
  const float inverse_count = 1.f / static_cast<float>(chunks.channel_count(own));
  for (int pixel = threadIdx.x / 8; pixel < Pixels; pixel += kThreads / 8) {
    float sum = 0.f, squares = 0.f, values[8];
    for (int j = lane; j < vectors; j += 8) {
      load8(v + pixel * pitch + 8 * j, values);  // zeros beyond the channels
#pragma unroll
      for (const float value : values) {
        sum += value;
      }
    }
    const float mean = sum_of_lanes(sum) * inverse_count;
    for (int j = lane; j < vectors; j += 8) {
      load8(v + pixel * pitch + 8 * j, values);
#pragma unroll
      for (const float value : values) {
        const float difference = chunks.channel(own, j) < chunks.channels ? value - mean : 0.f;
        squares = fmaf(difference, difference, squares);
      }
    }
    squares = sum_of_lanes(squares);
    if (lane < chunks.cluster) {
      send(statistics + own * Pixels + pixel, make_float2(mean, squares), lane, arrivals);
    }
  }
}

// Gives the cluster this block's channels of a, normalised with everybody's statistics.
template <int Pixels>
__device__ void share_normalized(const Chunks& chunks, int own, const float* v, int pitch, const float2* statistics,
                                 __half* a, int pitch_a, uint64_t* arrivals) {
  const int lane = static_cast<int>(threadIdx.x) % 8, vectors = chunks.count(own) * kVectors;
  const float inverse_count = 1.f / static_cast<float>(chunks.channels);
  for (int pixel = threadIdx.x / 8; pixel < Pixels; pixel += kThreads / 8) {
    float mean = 0.f, squares = 0.f;
    for (int rank = 0; rank < chunks.cluster; ++rank) {
      mean = fmaf(static_cast<float>(chunks.channel_count(rank)), statistics[rank * Pixels + pixel].x, mean);
    }
    mean *= inverse_count;
    for (int rank = 0; rank < chunks.cluster; ++rank) {
      const float2 part = statistics[rank * Pixels + pixel];
      const float difference = part.x - mean;
      squares += fmaf(static_cast<float>(chunks.channel_count(rank)) * difference, difference, part.y);
    }
    const float scale = rsqrtf(fmaf(squares, inverse_count, kEpsilon));
    for (int j = lane; j < vectors && chunks.channel(own, j) < chunks.channels; j += 8) {
      float values[8];
      load8(v + pixel * pitch + 8 * j, values);
#pragma unroll
      for (float& value : values) {
        value = (value - mean) * scale;
      }
      const uint4 rounded = make_uint4(halves(values[0], values[1]), halves(values[2], values[3]),
                                       halves(values[4], values[5]), halves(values[6], values[7]));
      auto* place = reinterpret_cast<uint4*>(a + pixel * pitch_a + chunks.channel(own, j));
      for (int rank = 0; rank < chunks.cluster; ++rank) {
        send(place, rounded, rank, arrivals);
      }
    }
  }
}

}  // namespace lpkernels::convnext
