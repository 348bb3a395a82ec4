// The first part of a ConvNeXt block where there are many images: depthwise convolution and layer norm, half precision
// in and out, all between in float.
//
//   v = conv7x7(x, taps) + taps_bias,  a = (v - mean_C v) / sqrt(var_C v + 1e-6)
//
// Layouts: x, a (B, H, W, C), taps (7, 7, C), taps_bias (C,). A block owns all channels of a tile of Columns pixels by
// a few rows; its pixels with 3 more on each side come to shared memory, and then v takes their place. A thread
// convolves a row of the tile for two channels: 14 pixels that it loads and converts feed 112 multiplications.
// Afterwards a warp has a pixel's channels in its registers.
//
// Published stages, of 8 images: 512, 256, 128 and 128 blocks of 12 warps, two on a multiprocessor in the first two
// stages. Bytes through the L2, pixels and taps: 29, 23, 20 and 33 MB; 154, 77, 39 and 19 million multiplications of
// floats. Bound by both: 5 and 7, 4 and 4, 4 and 2, 6 and 1 microseconds by count.
#pragma once

#include "common/divisor.h"
#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct DepthwiseNorm {
  const __half* x;
  const float *taps, *taps_bias;
  __half* a;
  int height, width, channels;
  int rows = 0;            // of a tile; this and what follows is set by `lay_out`
  int pixels_at_once = 0;  // that the block's threads load, 8 channels each
  Divisor by_pairs{}, by_vectors{}, by_tiles_w{};
};

// Columns of a tile; Quads: groups of four channels that a lane norms.
template <int Columns, int Quads>
struct DepthwiseNormTile {
  static constexpr int kTaps = 7;
  static constexpr int kThreads = 384;
  static constexpr int kColumns = Columns, kMostRows = 8;
  static constexpr int kMostChannels = 128 * Quads;
  // The halo in halves, so that the places of a row's pixels are known when compiling. Where the threads of a warp have
  // two rows of 96 channels, these lie in different banks.
  static constexpr int kHaloColumns = Columns + kTaps - 1;
  static constexpr int kPixelPitch = kMostChannels, kRowPitch = kHaloColumns * kPixelPitch + 32;
  static_assert(kMostChannels / 2 <= kThreads);

  static void lay_out(DepthwiseNorm& p) {
    p.rows = min(min(kThreads / (p.channels / 2), kMostRows), p.height);
    p.pixels_at_once = kThreads / (p.channels / 8);
    p.by_pairs = Divisor(p.channels / 2);
    p.by_vectors = Divisor(p.channels / 8);
    p.by_tiles_w = Divisor(ceil_div(p.width, Columns));
  }
  // Of an image.
  static int tiles(const DepthwiseNorm& p) { return ceil_div(p.height, p.rows) * ceil_div(p.width, Columns); }
  // v never takes more than the halo.
  static size_t shared_bytes(const DepthwiseNorm& p) { return sizeof(__half) * (p.rows + kTaps - 1) * kRowPitch; }

  // Asks for halo[row][column][channel], zeros outside the image.
  __device__ static void load_halo(const DepthwiseNorm& p, int image, int top, int left, int thread, __half* halo) {
    const int first = p.by_vectors.quotient(thread), channel = 8 * (thread - first * p.by_vectors.value);
    const int count = first < p.pixels_at_once ? (p.rows + kTaps - 1) * kHaloColumns : 0;
    const __half* from = p.x + int64_t{image} * p.height * p.width * p.channels + channel;
#pragma unroll 2
    for (int pixel = first; pixel < count; pixel += p.pixels_at_once) {
      const int row = pixel / kHaloColumns, column = pixel % kHaloColumns;
      const int y = top - kTaps / 2 + row, x = left - kTaps / 2 + column;
      const bool exists = static_cast<unsigned>(y) < static_cast<unsigned>(p.height) &&
                          static_cast<unsigned>(x) < static_cast<unsigned>(p.width);
      copy_async(halo + row * kRowPitch + column * kPixelPitch + channel,
                 from + (exists ? (int64_t{y} * p.width + x) * p.channels : 0), exists);
    }
    commit_copies();
  }

  __device__ static void load_taps(const float* from, int channels, float2 (&taps)[kTaps]) {
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
      taps[i] = *reinterpret_cast<const float2*>(from + i * channels);
    }
  }

  // Adds to v of a row of the tile, for two channels. pixels: of these channels, the first that are needed; from, taps:
  // of these, all and the first row. The next row's come while one is multiplied.
  __device__ static void convolve(const __half* pixels, const float* from, int channels, float2 (&taps)[2][kTaps],
                                  float2 (&v)[Columns]) {
#pragma unroll
    for (int row = 0; row < kTaps; ++row) {
      if (row + 1 < kTaps) {
        load_taps(from + (row + 1) * kTaps * channels, channels, taps[(row + 1) % 2]);
      }
#pragma unroll
      for (int column = 0; column < kHaloColumns; ++column) {
        const float2 x = floats(*reinterpret_cast<const uint32_t*>(pixels + row * kRowPitch + column * kPixelPitch));
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
          const int out = column - i;
          if (0 <= out && out < Columns) {
            const float2 tap = taps[row % 2][i];
            v[out] = make_float2(fmaf(x.x, tap.x, v[out].x), fmaf(x.y, tap.y, v[out].y));
          }
        }
      }
    }
  }

  // A pixel's norm by a warp.
  __device__ static void norm(const float* v, int channels, int lane, __half* a) {
    const float inverse_count = approximate_reciprocal(static_cast<float>(channels));
    float4 quads[Quads];
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (int i = 0; i < Quads; ++i) {
      const int channel = 4 * (lane + 32 * i);
      quads[i] = channel < channels ? *reinterpret_cast<const float4*>(v + channel) : make_float4(0.f, 0.f, 0.f, 0.f);
      sum += (quads[i].x + quads[i].y) + (quads[i].z + quads[i].w);
    }
    const float mean = sum_of_lanes<32>(sum) * inverse_count;
#pragma unroll
    for (int i = 0; i < Quads; ++i) {
      if (4 * (lane + 32 * i) < channels) {
        quads[i] = make_float4(quads[i].x - mean, quads[i].y - mean, quads[i].z - mean, quads[i].w - mean);
        squares += fmaf(quads[i].x, quads[i].x, quads[i].y * quads[i].y) +
                   fmaf(quads[i].z, quads[i].z, quads[i].w * quads[i].w);
      }
    }
    const float scale = rsqrtf(fmaf(sum_of_lanes<32>(squares), inverse_count, kEpsilon));
#pragma unroll
    for (int i = 0; i < Quads; ++i) {
      const int channel = 4 * (lane + 32 * i);
      if (channel < channels) {
        *reinterpret_cast<uint2*>(a + channel) =
            make_uint2(halves(quads[i].x * scale, quads[i].y * scale), halves(quads[i].z * scale, quads[i].w * scale));
      }
    }
  }
};

// Grid: (tiles of an image, images).
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2) depthwise_norm_kernel(const __grid_constant__ DepthwiseNorm p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  auto* halo = reinterpret_cast<__half*>(shared_memory());
  auto* v = reinterpret_cast<float*>(halo);
  const int thread = static_cast<int>(threadIdx.x), tile = static_cast<int>(blockIdx.x);
  const int tile_row = p.by_tiles_w.quotient(tile), image = static_cast<int>(blockIdx.y);
  const int top = tile_row * p.rows, left = (tile - tile_row * p.by_tiles_w.value) * Tile::kColumns;
  const int row = p.by_pairs.quotient(thread), channel = 2 * (thread - row * p.by_pairs.value);
  const bool convolves = row < p.rows;

  let_next_kernel_start();
  float2 taps[2][Tile::kTaps] = {}, sums[Tile::kColumns] = {};
  if (convolves) {
    Tile::load_taps(p.taps + channel, p.channels, taps[0]);
    const float2 bias = *reinterpret_cast<const float2*>(p.taps_bias + channel);
#pragma unroll
    for (float2& sum : sums) {
      sum = bias;
    }
  }
  wait_for_kernel_before();
  Tile::load_halo(p, image, top, left, thread, halo);
  wait_for_copies<0>();
  __syncthreads();
  if (convolves) {
    Tile::convolve(halo + row * Tile::kRowPitch + channel, p.taps + channel, p.channels, taps, sums);
  }
  __syncthreads();  // the halo has been read: v takes its place
  if (convolves) {
#pragma unroll
    for (int column = 0; column < Tile::kColumns; ++column) {
      *reinterpret_cast<float2*>(v + (row * Tile::kColumns + column) * p.channels + channel) = sums[column];
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int pixel = thread / 32; pixel < p.rows * Tile::kColumns; pixel += Tile::kThreads / 32) {
    const int y = top + pixel / Tile::kColumns, x = left + pixel % Tile::kColumns;
    if (y < p.height && x < p.width) {
      const int64_t target = (int64_t{image} * p.height + y) * p.width + x;
      Tile::norm(v + pixel * p.channels, p.channels, thread % 32, p.a + target * p.channels);
    }
  }
#endif
}

// Calls run(tile) for so many channels: 8 columns, or 4 where otherwise few blocks would have many channels each.
template <class Run>
void with_depthwise_norm(int channels, Run&& run) {
  if (channels <= DepthwiseNormTile<8, 1>::kMostChannels) {
    run(DepthwiseNormTile<8, 1>{});
  } else if (channels <= DepthwiseNormTile<8, 2>::kMostChannels) {
    run(DepthwiseNormTile<8, 2>{});
  } else if (channels <= DepthwiseNormTile<8, 3>::kMostChannels) {
    run(DepthwiseNormTile<8, 3>{});
  } else {
    run(DepthwiseNormTile<4, 6>{});
  }
}

}  // namespace lpkernels::convnext
