// The step between two stages of ConvNeXt, channels-last, half precision, sums and norms in float:
//
//   a = (x - mean_C x) / sqrt(var_C x + 1e-6),  y = conv2x2(a, W, stride 2) + bias
//
// Layouts: x (B, H, W, C), W (N, 2, 2, C), bias (N,), y (B, H / 2, W / 2, N). As a product K = 4C: tap by tap, then
// channels. A block owns 32 pixels of y, 96 outputs and 4 / Splits of the taps, whose weights are loaded before the
// wait for the kernel ahead; it normalises the pixels of those taps itself, 4 * Splits threads each, all of their
// numbers in registers. The Splits blocks of a cluster add up their sums.
//
// Published steps 64x64x96 -> 192, 32x32x192 -> 384, 16x16x384 -> 768: 64 blocks of 16 warps each, clusters of 1, 2 and
// 4; bytes a block: 74 KB of weights before the wait, 25 KB of x after it. By count, instructions of a warp: 240 before
// the wait, and after it 40 for x, 200 norm, 95 product, 120 for the sums. In clocks: x 800, norm 400, product 500,
// sums 700 (400 in the first): 1.3 microseconds.
#pragma once

#include "convnext/split_sums.cuh"

namespace lpkernels::convnext {

struct NormDownsample {
  const __half *x, *weight;
  const float* bias;
  __half* y;
  int height, width, channels, outputs;
  int rows;  // pixels of y, of all images
};

struct DownsampleMemory : SplitMemory<NarrowSplit> {
  static constexpr size_t kReceived = kEnd;
  static constexpr size_t kArrivals = kReceived + kReceivedBytes;
  static constexpr size_t kBytes = kArrivals + sizeof(uint64_t) * 2;
};

// A pixel of x on its way to `a`, one of Lanes threads'.
template <int Lanes>
struct NormedPixel {
  static constexpr int kVectors = 3;
  static constexpr int kMostChannels = 8 * kVectors * Lanes;

  uint4 vectors[kVectors];

  __device__ static int channel(int i) { return (static_cast<int>(threadIdx.x % Lanes) + i * Lanes) * 8; }

  // Zeros where there is no such pixel.
  __device__ void load(const __half* from, int channels, bool exists) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      vectors[i] = make_uint4(0, 0, 0, 0);
      if (exists && channel(i) < channels) {
        vectors[i] = *reinterpret_cast<const uint4*>(from + channel(i));
      }
    }
  }

  __device__ void store_normed(__half* to, int channels) const {
    const float inverse_count = approximate_reciprocal(static_cast<float>(channels));
    float v[kVectors][8], sum = 0.f, squares = 0.f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const uint32_t words[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 pair = floats(words[j]);
        v[i][2 * j] = pair.x;
        v[i][2 * j + 1] = pair.y;
        sum += pair.x + pair.y;
      }
    }
    const float mean = sum_of_lanes<Lanes>(sum) * inverse_count;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (float& value : v[i]) {
        value = channel(i) < channels ? value - mean : 0.f;
        squares = fmaf(value, value, squares);
      }
    }
    const float scale = rsqrtf(fmaf(sum_of_lanes<Lanes>(squares), inverse_count, kEpsilon));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (channel(i) < channels) {
        *reinterpret_cast<uint4*>(to + channel(i)) =
            make_uint4(halves(v[i][0] * scale, v[i][1] * scale), halves(v[i][2] * scale, v[i][3] * scale),
                       halves(v[i][4] * scale, v[i][5] * scale), halves(v[i][6] * scale, v[i][7] * scale));
      }
    }
  }
};

// Grid: (tiles of 32 pixels times Splits, column blocks), clusters of Splits along the first.
template <int Splits>
__global__ void __launch_bounds__(kThreads, 2) norm_downsample_kernel(const __grid_constant__ NormDownsample p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using Product = NarrowSplit;
  using Memory = DownsampleMemory;
  constexpr int kTaps = 4 / Splits, kLanes = kThreads / (Product::kRows * kTaps);
  const int part = static_cast<int>(blockIdx.x % Splits), tile = static_cast<int>(blockIdx.x / Splits);
  const int first_n = static_cast<int>(blockIdx.y) * Product::kColumns, depth = kTaps * p.channels;
  unsigned char* memory = shared_memory();
  auto* a = reinterpret_cast<__half*>(memory);
  auto* staged = reinterpret_cast<float*>(memory);
  auto* weights = reinterpret_cast<uint4*>(memory + Memory::kWeights);
  auto* bias = reinterpret_cast<float*>(memory + Memory::kBias);
  auto* received = reinterpret_cast<float*>(memory + Memory::kReceived);
  auto* arrivals = reinterpret_cast<uint64_t*>(memory + Memory::kArrivals);

  let_next_kernel_start();
  Product product(threadIdx.x);
  product.load_weights(p.weight, first_n, p.outputs, part * depth, 4 * p.channels, weights);
  copy_bias<Product>(p.bias, first_n, p.outputs, threadIdx.x, bias);
  commit_copies();
  if (threadIdx.x < Product::kRows) {
    __half* row = a + static_cast<int>(threadIdx.x) * Memory::kPitch;
#pragma unroll 1
    for (int k = depth; k < Product::kDepth; k += 8) {
      *reinterpret_cast<uint4*>(row + k) = make_uint4(0, 0, 0, 0);
    }
  }
  if (threadIdx.x == 0) {
    init_arrivals(arrivals);
    SplitSums<Product>::expect(arrivals);
  }
  arrive_at_cluster();
  const int pixel = static_cast<int>(threadIdx.x / (kLanes * kTaps)),
            tap = static_cast<int>(threadIdx.x / kLanes % kTaps);
  const int m = tile * Product::kRows + pixel, width = p.width / 2, height = p.height / 2, line = m / width;
  const int y = line % height * 2 + (part * kTaps + tap) / 2, x = m % width * 2 + (part * kTaps + tap) % 2;
  const __half* from = p.x + ((int64_t{line / height} * p.height + y) * p.width + x) * p.channels;
  const SplitSums<Product> sums(Splits, part, threadIdx.x);
  wait_for_kernel_before();

  NormedPixel<kLanes> own;
  own.load(from, p.channels, m < p.rows);
  own.store_normed(a + pixel * Memory::kPitch + tap * p.channels, p.channels);
  wait_for_copies<0>();
  __syncthreads();
  multiply(product, a, weights);
  wait_for_cluster();  // all of its blocks run: their memory may be written
  __syncthreads();     // a and the weights have been read: the sums take their place
  product.stage(staged);
  __syncthreads();
  sums.add_up(staged, 0, received, arrivals, [&](int row, float4 sum) {
    const int n = first_n + sums.column, place = tile * Product::kRows + part * sums.rows + row;
    if (place < p.rows && n < p.outputs) {
      sum = sum + *reinterpret_cast<const float4*>(bias + sums.column);
      *reinterpret_cast<uint2*>(p.y + int64_t{place} * p.outputs + n) =
          make_uint2(halves(sum.x, sum.y), halves(sum.z, sum.w));
    }
  });
#endif
}

// An instance of the kernel, for so many channels as a block's threads and weights take.
template <int Splits>
struct DownsampleVariant {
  static constexpr int kSplits = Splits;
  static constexpr int kMostChannels = NarrowSplit::kDepth / 4 * Splits;
  static constexpr auto kKernel = &norm_downsample_kernel<Splits>;
  static_assert(kMostChannels == NormedPixel<kThreads * Splits / (4 * NarrowSplit::kRows)>::kMostChannels);
};
using WidestDownsample = DownsampleVariant<4>;

// Calls run(variant, grid's first two).
template <class Run>
void with_downsample(const NormDownsample& p, Run&& run) {
  const auto call = [&](auto variant) {
    run(variant, ceil_div(p.rows, NarrowSplit::kRows) * variant.kSplits, ceil_div(p.outputs, NarrowSplit::kColumns));
  };
  if (p.channels <= DownsampleVariant<1>::kMostChannels) {
    call(DownsampleVariant<1>{});
  } else if (p.channels <= DownsampleVariant<2>::kMostChannels) {
    call(DownsampleVariant<2>{});
  } else {
    call(WidestDownsample{});
  }
}

}  // namespace lpkernels::convnext
