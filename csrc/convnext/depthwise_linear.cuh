// The first half of a ConvNeXt V2 block in one kernel, channels-last, half precision, sums and norms in float:
//
//   v = conv7x7(x, taps, groups = C) + taps_bias,  a = (v - mean_C v) / sqrt(var_C v + 1e-6),  h = gelu(a W^T + b)
//   squares[tile, n] = sum over the tile's pixels of h^2
//
// Layouts: x (B, H, W, C), taps (7, 7, C) float, W (N, C), h (B, H, W, N), squares (B, tiles, N). A block owns a tile
// of PatchH x 8 pixels of an image and kColumns of the N outputs. The blocks of a cluster have the same tile: each
// convolves every `cluster`-th chunk of 48 channels, then they exchange means and the normalised pixels through
// distributed shared memory, so that the convolution is repeated little (twice in the third published stage, eight
// times in the last, whose tiles are few). Weights, taps and biases are loaded before the wait for the kernel ahead.
//
// Published stages 4096 x 96 .. 64 x 768 (pixels x channels), 128 blocks of 8 warps each: 1.2 M products of the tensor
// cores a block; 64, 32, 32, 32 pixels x 48, 48, 48, 96 channels to convolve, 650 instructions for 256 of those outputs
// in a warp; bytes a block: 74 KB of weights (37 in the first stage) before the wait, 13 to 27 KB of x after it.
// By count, after the wait, in clocks: x 700, convolution 1300 (1950 in the first and last), norm and two exchanges
// 700, product 1000, GELU and stores 500 (2100 in the first): 2.4 microseconds, 3.7 in the first.
#pragma once

#include "convnext/cluster_norm.cuh"

namespace lpkernels::convnext {

// max(v, 0) - |v| / 2 * erfc(|v| / sqrt(2)), erfc by Abramowitz and Stegun 7.1.26: no branch, within 4e-7.
__device__ inline float gelu(float v) {
  const float size = fabsf(v);
  const float t = approximate_reciprocal(fmaf(0.3275911f * 0.7071067811865476f, size, 1.f));
  float series = fmaf(t, 1.061405429f, -1.453152027f);
  series = fmaf(t, series, 1.421413741f);
  series = fmaf(t, series, -0.284496736f);
  series = fmaf(t, series, 0.254829592f);
  return fmaxf(v, 0.f) - 0.5f * size * (series * t) * approximate_exp2(-0.7213475204444817f * v * v);
}

// Bias, GELU, h, and the tile's sums of squares in a fixed order. A thread has four columns of every kSlices-th pixel.
template <class Product, int PatchH>
__device__ void finish(const DepthwiseLinear& p, const float* staged, const float* bias, int image, int tile, int top,
                       int left, int first_n, float4* partial) {
  constexpr int kQuads = Product::kColumns / 4, kSlices = kThreads / kQuads, kPixels = PatchH * kPatchW;
  const int slice = static_cast<int>(threadIdx.x) / kQuads, column = static_cast<int>(threadIdx.x) % kQuads * 4;
  const int n = first_n + column;
  float4 squares = make_float4(0.f, 0.f, 0.f, 0.f);
  if (slice < kSlices && n < p.outputs) {
#pragma unroll 4
    for (int pixel = slice; pixel < kPixels; pixel += kSlices) {
      const int y = top + pixel / kPatchW, x = left + pixel % kPatchW;
      if (y >= p.height || x >= p.width) {
        continue;
      }
      float4 sum = *reinterpret_cast<const float4*>(bias + column);
#pragma unroll
      for (int group = 0; group < Product::kGroups; ++group) {
        const float* row = staged + (group * kPixels + pixel) * Product::kStagedPitch;
        sum = sum + *reinterpret_cast<const float4*>(row + column);
      }
      const uint2 rounded = make_uint2(halves(gelu(sum.x), gelu(sum.y)), halves(gelu(sum.z), gelu(sum.w)));
      *reinterpret_cast<uint2*>(p.h + ((int64_t{image} * p.height + y) * p.width + x) * p.outputs + n) = rounded;
      const float2 first = floats(rounded.x), second = floats(rounded.y);
      squares.x = fmaf(first.x, first.x, squares.x);
      squares.y = fmaf(first.y, first.y, squares.y);
      squares.z = fmaf(second.x, second.x, squares.z);
      squares.w = fmaf(second.y, second.y, squares.w);
    }
  }
  partial[threadIdx.x] = squares;
  __syncthreads();
  if (slice == 0 && n < p.outputs) {
    for (int i = 1; i < kSlices; ++i) {
      squares = squares + partial[i * kQuads + threadIdx.x];
    }
    *reinterpret_cast<float4*>(p.squares + (int64_t{image} * gridDim.y + tile) * p.outputs + n) = squares;
  }
}

// Grid: (column blocks, tiles of an image, images), clusters along the columns.
template <int PatchH, int GroupsK, int Steps>
__global__ void __launch_bounds__(kThreads, 2) depthwise_linear_kernel(const __grid_constant__ DepthwiseLinear p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int kPixels = PatchH * kPatchW;
  using Product = HeldProduct<kPixels, GroupsK, Steps>;
  using Memory = DepthwiseMemory<Product, PatchH>;
  const Memory at(p.channels, p.cluster);
  unsigned char* memory = shared_memory();
  auto* a = reinterpret_cast<__half*>(memory);
  auto* v = reinterpret_cast<float*>(memory + at.convolved);
  const auto halo = [&](int i) { return reinterpret_cast<__half*>(memory + at.halo + i % 2 * Memory::kHaloBytes); };
  const auto taps = [&](int i) { return reinterpret_cast<float*>(memory + at.taps + i % 2 * Memory::kTapBytes); };
  const Chunks chunks(p.channels, p.cluster, at.chunks);
  const int own = static_cast<int>(blockIdx.x) % p.cluster;
  const int count = chunks.count(own), image = blockIdx.z, tile = blockIdx.y, tiles_w = ceil_div(p.width, kPatchW);
  const int top = tile / tiles_w * PatchH, left = tile % tiles_w * kPatchW;
  const int first_n = static_cast<int>(blockIdx.x) * Product::kColumns;

  let_next_kernel_start();
  for (int i = 0; i < 2 && i < count; ++i) {
    load_taps(p, chunks.chunk(own, i), taps(i));
  }
  Product product;
  product.load_weights(p.weight, first_n, p.outputs, 0, p.channels);
  auto* bias = reinterpret_cast<float*>(memory + at.bias);
  for (int i = threadIdx.x; i < Product::kColumns; i += kThreads) {
    bias[i] = first_n + i < p.outputs ? p.bias[first_n + i] : 0.f;
  }
  const int padding = (padded_depth(p.channels) - p.channels) / 8;
  for (int i = threadIdx.x; i < kPixels * padding; i += kThreads) {
    __half* row = a + i / padding * at.pitch_a;
    *reinterpret_cast<uint4*>(row + p.channels + i % padding * 8) = make_uint4(0, 0, 0, 0);
  }
  auto* statistics = reinterpret_cast<float2*>(memory + at.statistics);
  auto* arrivals = reinterpret_cast<uint64_t*>(memory + at.arrivals);
  if (threadIdx.x == 0) {
    expect_bytes(arrivals, static_cast<int>(sizeof(float2)) * p.cluster * kPixels);
    expect_bytes(arrivals + 1, static_cast<int>(sizeof(__half)) * p.channels * kPixels);
  }
  arrive_at_cluster();
  wait_for_kernel_before();

  for (int i = 0; i < 2 && i < count; ++i) {
    load_halo<PatchH>(p, image, top, left, chunks.chunk(own, i), halo(i));
    commit_copies();
  }
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) {
      wait_for_copies<1>();
    } else {
      wait_for_copies<0>();
    }
    __syncthreads();
    convolve<PatchH>(halo(i), taps(i), v + i * kChunk, at.pitch_v);
    if (i + 2 < count) {
      __syncthreads();
      load_taps(p, chunks.chunk(own, i + 2), taps(i + 2));
      load_halo<PatchH>(p, image, top, left, chunks.chunk(own, i + 2), halo(i + 2));
      commit_copies();
    }
  }
  __syncthreads();

  wait_for_cluster();  // all of its blocks run: their memory may be written
  share_statistics<kPixels>(chunks, own, v, at.pitch_v, statistics, arrivals);
  wait_for_bytes(arrivals);
  share_normalized<kPixels>(chunks, own, v, at.pitch_v, statistics, a, at.pitch_a, arrivals + 1);
  wait_for_bytes(arrivals + 1);
  __syncthreads();  // v has been read: the sums take its place

  product.clear();
  product.multiply(a, at.pitch_a, padded_depth(p.channels));
  product.stage(v);
  __syncthreads();
  finish<Product, PatchH>(p, v, bias, image, tile, top, left, first_n, reinterpret_cast<float4*>(memory + at.partial));
#endif
}

// An instance of the kernel, for so many channels as its registers hold weights of.
template <int PatchH, int GroupsK, int Steps>
struct DepthwiseVariant {
  using Product = HeldProduct<PatchH * kPatchW, GroupsK, Steps>;
  static constexpr auto kKernel = &depthwise_linear_kernel<PatchH, GroupsK, Steps>;

  static size_t shared_bytes(int channels, int cluster) {
    return DepthwiseMemory<Product, PatchH>(channels, cluster).bytes;
  }
};
using LargeDepthwise = DepthwiseVariant</*PatchH=*/8, /*GroupsK=*/1, /*Steps=*/3>;  // many pixels, 96 channels
using NarrowDepthwise = DepthwiseVariant<4, 1, 6>;                                  // 192 channels
using MiddleDepthwise = DepthwiseVariant<4, 2, 6>;                                  // 384
using WideDepthwise = DepthwiseVariant<4, 4, 6>;                                    // 768

// Rows of a tile. lpkernels/ref/depthwise_linear.py has the same rule: `squares` has a row for each tile.
inline int patch_height(const DepthwiseLinear& p) {
  return p.height * p.width >= 2048 && p.channels <= LargeDepthwise::Product::kDepth ? 8 : 4;
}

inline int tiles_of(const DepthwiseLinear& p) {
  return ceil_div(p.height, patch_height(p)) * ceil_div(p.width, kPatchW);
}

// As many blocks of a tile as a portable cluster holds, each with a chunk of the channels at least.
inline int cluster_for(const DepthwiseLinear& p, int columns) {
  int cluster = 1;
  while (cluster < 8 && 2 * cluster <= ceil_div(p.channels, kChunk) && columns % (2 * cluster) == 0) {
    cluster *= 2;
  }
  return cluster;
}

// Calls run(variant, blocks of columns).
template <class Run>
void with_variant(const DepthwiseLinear& p, Run&& run) {
  const auto call = [&](auto variant) { run(variant, ceil_div(p.outputs, decltype(variant)::Product::kColumns)); };
  if (patch_height(p) == 8) {
    call(LargeDepthwise{});
  } else if (p.channels <= NarrowDepthwise::Product::kDepth) {
    call(NarrowDepthwise{});
  } else if (p.channels <= MiddleDepthwise::Product::kDepth) {
    call(MiddleDepthwise{});
  } else {
    call(WideDepthwise{});
  }
}

}  // namespace lpkernels::convnext
