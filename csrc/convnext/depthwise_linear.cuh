// The first half of a ConvNeXt V2 block in one kernel, channels-last, half precision, sums and norms in float:
//
//   v = conv7x7(x, taps, groups = C) + taps_bias,  a = (v - mean_C v) / sqrt(var_C v + 1e-6),  h = gelu(a W^T + b)
//   squares[tile, n] = sum over the tile's pixels of h^2
//
// Layouts: x (B, H, W, C), taps (7, 7, C) float, W (N, C), h (B, H, W, N), squares (B, tiles, N). A block owns a tile
// of PatchH x 8 pixels of an image and kColumns of the N outputs. The blocks of a cluster have the same tile: each
// convolves some chunks of 48 channels, rounds v to half precision and sends it to the others, so that the convolution
// is repeated little (twice in the third published stage, eight times in the last, whose tiles are few). The product is
// that of v: the norm is applied to its sums. Weights, taps, biases and the weights' sums are ready before the wait for
// the kernel ahead.
//
// Published stages 4096 x 96 .. 64 x 768 (pixels x channels), 128 blocks of 16 warps each, two to a multiprocessor: 1.2
// M products of the tensor cores a block, and a quarter more (half in the last stage) for the sums of v; 64, 32, 32, 32
// pixels x 48, 48, 48, 96 channels to convolve, by 12, 6, 6, 12 warps; bytes a block: 74 KB of weights before the wait,
// 13 to 27 KB of x after it, 7 to 50 KB from the cluster. It is a sequence of waits, for x out of the L2, for tensor
// cores and for the other blocks of the cluster.
#pragma once

#include "convnext/depthwise_exchange.cuh"

namespace lpkernels::convnext {

// max(v, 0) - |v| / 2 * erfc(|v| / sqrt(2)), erfc by Abramowitz and Stegun 7.1.26: no branch, within 4e-7.
__device__ inline float gelu(float v) {
  const float size = fabsf(v);
  const float t = approximate_reciprocal(fmaf(0.3275911f * 0.7071067811865476f, size, 1.f));
  float series = fmaf(t, -0.5f * 1.061405429f, 0.5f * 1.453152027f);
  series = fmaf(t, series, -0.5f * 1.421413741f);
  series = fmaf(t, series, 0.5f * 0.284496736f);
  series = fmaf(t, series, -0.5f * 0.254829592f);
  return fmaf(series * (t * size), approximate_exp2(-0.7213475204444817f * v * v), fmaxf(v, 0.f));
}

// Layer norm, bias, GELU, h, and the tile's sums of squares in a fixed order. targets: of the tile's pixels in the
// image, negative outside.
template <class Product>
__device__ void finish(const DepthwiseLinear& p, const float* staged, const float2* norms, const int* targets,
                       const float* weight_totals, const float* bias, int first_n, float4* partial) {
  constexpr int kQuads = Product::kQuads, kSlices = Product::kSlices;
  const int slice = static_cast<int>(threadIdx.x / kQuads), column = static_cast<int>(threadIdx.x % kQuads) * 4;
  const int n = first_n + column;
  float4 squares = make_float4(0.f, 0.f, 0.f, 0.f);
  if (slice < kSlices) {
    if (n < p.outputs) {
      const float4 own_bias = *reinterpret_cast<const float4*>(bias + column);
      const float4 totals = *reinterpret_cast<const float4*>(weight_totals + column);
      __half* h = p.h + int64_t{blockIdx.z} * p.height * p.width * p.outputs + n;
#pragma unroll 2  // more would be fetched for a single use
      for (int i = 0; i < Product::kRows / kSlices; ++i) {
        const int pixel = slice + i * kSlices, target = targets[pixel];
        if (target < 0) {
          continue;
        }
        const float2 norm = norms[pixel];
        const float4 sum = Product::staged_sum(staged, pixel, column);
        const auto value = [&](float sum, float total, float bias) {
          return gelu(fmaf(fmaf(-norm.x, total, sum), norm.y, bias));
        };
        const uint2 rounded =
            make_uint2(halves(value(sum.x, totals.x, own_bias.x), value(sum.y, totals.y, own_bias.y)),
                       halves(value(sum.z, totals.z, own_bias.z), value(sum.w, totals.w, own_bias.w)));
        *reinterpret_cast<uint2*>(h + int64_t{target} * p.outputs) = rounded;
        const float2 first = floats(rounded.x), second = floats(rounded.y);
        squares.x = fmaf(first.x, first.x, squares.x);
        squares.y = fmaf(first.y, first.y, squares.y);
        squares.z = fmaf(second.x, second.x, squares.z);
        squares.w = fmaf(second.y, second.y, squares.w);
      }
    }
    partial[threadIdx.x] = squares;
  }
  __syncthreads();
  if (slice == 0 && n < p.outputs) {
#pragma unroll 8
    for (int i = 1; i < kSlices; ++i) {
      squares = squares + partial[i * kQuads + threadIdx.x];
    }
    *reinterpret_cast<float4*>(p.squares + (int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * p.outputs + n) = squares;
  }
}

// Grid: (column blocks, tiles of an image, images), clusters along the columns.
template <int PatchH, int GroupsK, int Held>
__global__ void __launch_bounds__(kThreads, 2) depthwise_linear_kernel(const __grid_constant__ DepthwiseLinear p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  constexpr int kPixels = PatchH * kPatchW;
  using Product = HeldProduct<kPixels / kWarpRows, GroupsK, Held>;
  using Memory = DepthwiseMemory<Product, PatchH>;
  const Memory at(p.channels, p.cluster);
  unsigned char* memory = shared_memory();
  auto* weights = reinterpret_cast<uint4*>(memory);
  auto* sums = reinterpret_cast<float*>(memory);
  unsigned char* slots = memory + Memory::kSlots;
  const auto taps = [&](int i) {
    return reinterpret_cast<uint4*>(slots + i * Slot<PatchH>::kBytes + Slot<PatchH>::kTaps);
  };
  const auto taps_bias = [&](int i) {
    return reinterpret_cast<float*>(slots + i * Slot<PatchH>::kBytes + Slot<PatchH>::kBias);
  };
  auto* a = reinterpret_cast<__half*>(memory + at.a);
  auto* arrivals = reinterpret_cast<uint64_t*>(memory + at.arrivals);
  auto* bias = reinterpret_cast<float*>(memory + at.bias);
  auto* statistics = reinterpret_cast<float2*>(memory + at.statistics);
  auto* norms = reinterpret_cast<float2*>(memory + at.norms);
  auto* targets = reinterpret_cast<int*>(memory + at.targets);
  auto* weight_totals = reinterpret_cast<float*>(memory + at.weight_totals);
  const int own = static_cast<int>(blockIdx.x) & (p.cluster - 1);
  const Chunks chunks(p.channels, p.cluster, own);
  const int tile = blockIdx.y, tiles_w = ceil_div(p.width, kPatchW);
  const int top = tile / tiles_w * PatchH, left = tile % tiles_w * kPatchW;
  const int first_n = static_cast<int>(blockIdx.x) * Product::kColumns;

  let_next_kernel_start();
  Taps columns[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i < chunks.count) {
      columns[i].load(p, chunks.first + i, taps_bias(i));
    }
  }
  Product product;
  product.load_weights(p.weight, first_n, p.outputs, 0, p.channels, weights);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i < chunks.count) {
      columns[i].store(taps(i));
    }
  }
  if (threadIdx.x < Product::kQuads) {
    const int n = 4 * static_cast<int>(threadIdx.x);
    copy_async(bias + n, p.bias + first_n + n, first_n + n < p.outputs);
  }
  commit_copies();
  if (threadIdx.x < kPixels) {
    const int pixel = threadIdx.x, y = top + pixel / kPatchW, x = left + pixel % kPatchW;
    targets[pixel] = y < p.height && x < p.width ? y * p.width + x : -1;
  }
  if (threadIdx.x == 0) {
    init_arrivals(arrivals);
  }
  if (at.apart) {
    arrive_at_cluster();
  }
  wait_for_copies<0>();
  add_up_weights(product, weights, reinterpret_cast<float*>(memory + at.weight_sums), weight_totals);
  const Halo<PatchH> source(p, blockIdx.z, top, left);
  if (at.apart) {
    wait_for_cluster();  // all of its blocks run: their memory may be written
  }
  wait_for_kernel_before();

#pragma unroll 1
  for (int first = 0; first < chunks.count; first += 2) {
    const int chunks_here = min(chunks.count - first, 2);
    if (first > 0) {
      __syncthreads();
    }
#pragma unroll 1
    for (int i = 0; i < chunks_here; ++i) {
      const int chunk = chunks.first + first + i;
      if (first > 0) {
        columns[0].load(p, chunk, taps_bias(i));
        columns[0].store(taps(i));
      }
      source.load(p, chunk, reinterpret_cast<__half*>(slots + i * Slot<PatchH>::kBytes));
    }
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    convolve<PatchH>(chunks_here, slots, a + Memory::place_of(chunks, chunks.first + first, own) * Memory::kChunkSize);
  }
  publish_to_copies();
  if (!at.apart) {
    arrive_at_cluster();
    wait_for_cluster();  // their halos, where a is to be, have been read
  }
  clear_rest<Memory>(chunks, own, a);
  __syncthreads();
  if (threadIdx.x == 0) {
    expect_bytes(arrivals, (chunks.all - chunks.count) * Memory::kChunkBytes);
  }
  share_chunks<Memory>(chunks, own, p.cluster, a, arrivals);
  product.load_held(p.weight, first_n, p.outputs, 0, p.channels);  // again, rather than in registers all the while
  wait_for_bytes(arrivals);
  arrive_at_cluster();

  PixelSums<Product> pixel_sums;
  multiply<Memory>(product, chunks, own, a, weights, pixel_sums);
  pixel_sums.store(statistics);
  wait_for_cluster();  // what this block sent has arrived
  __syncthreads();     // a and the weights have been read: the sums take their place
  if (threadIdx.x < kPixels) {
    norms[threadIdx.x] = PixelSums<Product>::norm(statistics, static_cast<int>(threadIdx.x), p.channels);
  }
  product.stage(sums);
  __syncthreads();
  finish<Product>(p, sums, norms, targets, weight_totals, bias, first_n,
                  reinterpret_cast<float4*>(memory + Memory::kSquares));
#endif
}

// An instance of the kernel, for so many channels as a block holds weights of.
template <int PatchH, int GroupsK, int Held>
struct DepthwiseVariant {
  using Product = HeldProduct<PatchH * kPatchW / kWarpRows, GroupsK, Held>;
  static constexpr auto kKernel = &depthwise_linear_kernel<PatchH, GroupsK, Held>;

  static size_t shared_bytes(int channels, int cluster) {
    return DepthwiseMemory<Product, PatchH>(channels, cluster).bytes;
  }
};
using LargeDepthwise = DepthwiseVariant</*PatchH=*/8, /*GroupsK=*/1, /*Held=*/1>;  // many pixels, 96 channels
using NarrowDepthwise = DepthwiseVariant<4, 2, 0>;                                 // 192 channels
using MiddleDepthwise = DepthwiseVariant<4, 4, 1>;                                 // 384
using WideDepthwise = DepthwiseVariant<4, 8, 1>;                                   // 768

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
