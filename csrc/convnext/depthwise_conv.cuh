// The depthwise 7x7 convolution of depthwise_linear: a tile's pixels with 3 more on each side come to shared memory,
// chunk by chunk of 48 channels, and a thread convolves runs of four pixels for two channels, in float registers: of
// each row around them it reads 10 pixels and 7 taps for 56 products a channel.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct DepthwiseLinear {
  const __half* x;
  const float *taps, *taps_bias;
  const __half* weight;
  const float* bias;
  __half* h;
  float* squares;
  int height, width, channels, outputs;
  int cluster;  // at most 8 and at most the chunks of the channels; divides the grid's x
};

constexpr int kTaps = 7;
constexpr int kPatchW = 8;
constexpr int kHaloW = kPatchW + kTaps - 1;
constexpr int kRun = 4;     // neighbouring pixels that a thread convolves at once, for two channels
constexpr int kChunk = 48;  // channels
constexpr int kPairs = kChunk / 2;
constexpr int kVectors = kChunk / 8;
// Elements between rows of the halo: runs below each other, which a warp reads at once, begin 24 banks apart.
constexpr int kHaloPitch = kHaloW * kChunk + 16;

// Where a block's shared memory has what, the same in every block of a cluster.
template <class Product, int PatchH>
struct DepthwiseMemory {
  static constexpr int kPixels = PatchH * kPatchW;
  static constexpr size_t kHaloBytes = sizeof(__half) * (PatchH + kTaps - 1) * kHaloPitch;
  static constexpr size_t kTapBytes = sizeof(float) * (kTaps * kTaps + 1) * kChunk;  // the last row is the bias

  int chunks, most, slots;  // of the channels; of a block; that are loaded at once
  int pitch_a, pitch_v;
  size_t arrivals, statistics, bias, partial, convolved, halo, taps,
      bytes;  // a is at 0; `staged` lies over v, halo and taps

  LPKERNELS_HOST_DEVICE DepthwiseMemory(int channels, int cluster) {
    chunks = ceil_div(channels, kChunk);
    most = ceil_div(chunks, cluster);
    slots = most < 2 ? most : 2;
    pitch_a = row_pitch(padded_depth(channels));
    pitch_v = most % 2 == 1 ? most * kChunk : most * kChunk + 16;  // two pixels of 16 lanes in different banks
    arrivals = sizeof(__half) * kPixels * pitch_a;                 // of statistics, and of a
    statistics = arrivals + 2 * sizeof(uint64_t);
    bias = statistics + sizeof(float2) * cluster * kPixels;
    partial = bias + sizeof(float) * Product::kColumns;
    convolved = partial + sizeof(float4) * kThreads;
    halo = convolved + sizeof(float) * kPixels * pitch_v;
    taps = halo + slots * kHaloBytes;
    const size_t end = taps + slots * kTapBytes, staged_end = convolved + Product::kStagedBytes;
    bytes = end > staged_end ? end : staged_end;
  }
};

// Asks for a chunk's taps and, as their last row, its bias: taps[50][48].
__device__ inline void load_taps(const DepthwiseLinear& p, int chunk, float* taps) {
  constexpr int kQuads = kChunk / 4, kRows = kThreads / kQuads;
  const int first = static_cast<int>(threadIdx.x) / kQuads, quad = static_cast<int>(threadIdx.x) % kQuads;
  const int c = chunk * kChunk + quad * 4;
  const bool exists = c < p.channels;
#pragma unroll
  for (int i = 0; i < ceil_div(kTaps * kTaps + 1, kRows); ++i) {
    const int tap = first + i * kRows;
    const float* row = tap < kTaps * kTaps ? p.taps + tap * p.channels : p.taps_bias;
    if (first < kRows && tap <= kTaps * kTaps) {
      copy_async(taps + tap * kChunk + quad * 4, exists ? row + c : row, exists);
    }
  }
}

// Asks for a chunk of the tile's pixels and of those 3 around it: halo[row][column][48], zeros outside the image.
template <int PatchH>
__device__ void load_halo(const DepthwiseLinear& p, int image, int top, int left, int chunk, __half* halo) {
  constexpr int kRows = kThreads / (kHaloW * kVectors);  // that the block's threads load at once
  const int vector = static_cast<int>(threadIdx.x) % kVectors, pixel = static_cast<int>(threadIdx.x) / kVectors;
  const int first = pixel / kHaloW, column = pixel % kHaloW;
  const int c = chunk * kChunk + vector * 8, y = top - kTaps / 2 + first, x = left - kTaps / 2 + column;
  const __half* from = p.x + ((int64_t{image} * p.height + y) * p.width + x) * p.channels + c;
  const int row_of_x = p.width * p.channels;
  const bool exists = c < p.channels && x >= 0 && x < p.width;
  __half* to = halo + first * kHaloPitch + column * kChunk + vector * 8;
#pragma unroll
  for (int i = 0; i < ceil_div(PatchH + kTaps - 1, kRows); ++i) {
    const int row = i * kRows;
    const bool inside = exists && y + row >= 0 && y + row < p.height;
    if (first < kRows && first + row < PatchH + kTaps - 1) {
      copy_async(to + row * kHaloPitch, inside ? from + int64_t{row} * row_of_x : p.x, inside);
    }
  }
}

// v[pixel][channel of the chunk], rows of `pitch`.
template <int PatchH>
__device__ void convolve(const __half* halo, const float* taps, float* v, int pitch) {
  constexpr int kRuns = PatchH * kPatchW / kRun;
  for (int item = threadIdx.x; item < kPairs * kRuns; item += kThreads) {
    const int pair = item % kPairs, run = item / kPairs, top = run % PatchH, left = run / PatchH * kRun;
    const auto* pixels = reinterpret_cast<const __half2*>(halo + top * kHaloPitch + left * kChunk) + pair;
    const auto* tap = reinterpret_cast<const float2*>(taps) + pair;
    float2 sums[kRun];
#pragma unroll
    for (float2& sum : sums) {
      sum = tap[kTaps * kTaps * kPairs];
    }
#pragma unroll
    for (int row = 0; row < kTaps; ++row) {
      float2 w[kTaps];
#pragma unroll
      for (int i = 0; i < kTaps; ++i) {
        w[i] = tap[(row * kTaps + i) * kPairs];
      }
#pragma unroll
      for (int column = 0; column < kRun + kTaps - 1; ++column) {
        const float2 value = __half22float2(pixels[row * (kHaloPitch / 2) + column * kPairs]);
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          if (column >= i && column < i + kTaps) {
            sums[i].x = fmaf(value.x, w[column - i].x, sums[i].x);
            sums[i].y = fmaf(value.y, w[column - i].y, sums[i].y);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      *reinterpret_cast<float2*>(v + (top * kPatchW + left + i) * pitch + 2 * pair) = sums[i];
    }
  }
}

}  // namespace lpkernels::convnext
