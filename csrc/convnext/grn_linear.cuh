// The second half of a ConvNeXt V2 block in one kernel, half precision, sums and norms in float:
//
//   n = |x|_HW / (mean_K |x|_HW + 1e-6),  y = (x * (1 + gamma * n)) W^T + bias + residual
//
// Layouts: x (B, S, K), squares (B, rows, K), W (N, K), residual and y (B, S, N), S = H * W. A block owns 32 pixels of
// an image, 96 outputs and one of `splits` pieces of 384 of K, whose weights are in registers before the wait for the
// kernel ahead. A cluster is `tiles` tiles of pixels times the `splits` blocks that share their sums. Its blocks divide
// the K columns' norms among themselves and tell each other through distributed shared memory; each multiplies its x by
// the factors where it lies in shared memory, rounded once; at the end each sends its sums to the block
// that adds up those pixels, in order. What is sent counts its own arrival: no fence, no barrier of the cluster.
//
// Published stages 4096 x 384 -> 96 .. 64 x 3072 -> 768: 128 blocks of 8 warps each, 1.2 M products of the tensor cores
// a block, clusters of 8 tiles and no split, 4 and 2, 2 and 4, 1 and 8. Bytes a block: 74 KB of weights before the
// wait; 25 KB of x, 12 to 3 KB of squares, 6 KB of residual after it, up to 21 KB from the cluster. By count, after the
// wait, in clocks: squares and x 800, norms and their exchange 500, scaling 250, product 1000, sums 400: 1.7
// microseconds.
#pragma once

#include "convnext/product.cuh"

namespace lpkernels::convnext {

struct GrnLinear {
  const __half* x;
  const float *squares, *gamma;
  const __half* weight;
  const float* bias;
  const __half* residual;
  __half* y;
  int pixels, depth, outputs, rows;  // of an image; K; N; of squares
  int splits, tiles;                 // powers of two, their product is the cluster; splits * 384 is K or more
};

// Where a block's shared memory has what, the same in every block of a cluster.
struct GrnMemory {
  using Product = HeldProduct<32, 2, 6>;
  static constexpr int kPitch = row_pitch(Product::kDepth);

  int quads;  // groups of four columns whose norms a block takes
  size_t arrivals, gains, sums, bias, residual, partial, received, bytes;  // a is at 0

  LPKERNELS_HOST_DEVICE GrnMemory(int depth, int cluster) {
    quads = ceil_div(depth / 4, cluster);
    arrivals = sizeof(__half) * Product::kRows * kPitch;  // of norms, and of sums
    gains = arrivals + 2 * sizeof(uint64_t);              // gamma |x| of every column, float
    sums = gains + sizeof(float4) * quads * cluster;      // of |x|, by block and warp
    bias = sums + sizeof(float) * cluster * kWarps;
    residual = bias + sizeof(float) * Product::kColumns;
    partial = residual + sizeof(__half) * Product::kRows * Product::kColumns;
    received = partial + sizeof(float4) * (quads > kThreads ? quads : kThreads);
    bytes = received + Product::kStagedBytes;
  }
};

// This block's part of the K norms, told to the cluster: gamma |x| by column, and the sum of |x| by warp.
__device__ inline void share_norms(const GrnLinear& p, const GrnMemory& at, unsigned char* memory, int image, int own,
                                   float4 gamma, uint64_t* arrivals) {
  const int cluster = p.splits * p.tiles, thread = threadIdx.x, first = own * at.quads;
  const int slices = at.quads < kThreads ? kThreads / at.quads : 1;
  const float* squares = p.squares + int64_t{image} * p.rows * p.depth;
  auto* partial = reinterpret_cast<float4*>(memory + at.partial);
  for (int item = thread; item < slices * at.quads; item += kThreads) {
    const int k = (first + item % at.quads) * 4;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    if (k < p.depth) {
#pragma unroll 4
      for (int row = item / at.quads; row < p.rows; row += slices) {
        sum = sum + *reinterpret_cast<const float4*>(squares + int64_t{row} * p.depth + k);
      }
    }
    partial[item] = sum;
  }
  __syncthreads();
  float of_thread = 0.f;
  wait_for_cluster();  // all of its blocks run: their memory may be written
  for (int quad = thread; quad < at.quads; quad += kThreads) {
    const int k = (first + quad) * 4;
    if (k < p.depth) {
      float4 sum = partial[quad];
      for (int slice = 1; slice < slices; ++slice) {
        sum = sum + partial[slice * at.quads + quad];
      }
      const float4 norm = make_float4(sqrtf(sum.x), sqrtf(sum.y), sqrtf(sum.z), sqrtf(sum.w));
      of_thread += (norm.x + norm.y) + (norm.z + norm.w);
      if (quad != thread) {
        gamma = *reinterpret_cast<const float4*>(p.gamma + k);
      }
      const float4 gain = make_float4(gamma.x * norm.x, gamma.y * norm.y, gamma.z * norm.z, gamma.w * norm.w);
      for (int rank = 0; rank < cluster; ++rank) {
        send(reinterpret_cast<float4*>(memory + at.gains) + first + quad, gain, rank, arrivals);
      }
    }
  }
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    of_thread += __shfl_xor_sync(~0u, of_thread, lanes);
  }
  if (thread % 32 < cluster) {
    send(reinterpret_cast<float*>(memory + at.sums) + own * kWarps + thread / 32, of_thread, thread % 32, arrivals);
  }
  wait_for_bytes(arrivals);
}

// 1 / (mean_K |x| + eps), from the sums of all blocks and warps.
__device__ inline float inverse_mean(const GrnLinear& p, const float* sums) {
  float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
  for (int i = 0; i < p.splits * p.tiles * kWarps; i += 4) {
    sum = sum + *reinterpret_cast<const float4*>(sums + i);
  }
  return 1.f / (((sum.x + sum.y) + (sum.z + sum.w)) / static_cast<float>(p.depth) + kEpsilon);
}

// A block's 32 pixels of x by one piece of K, in shared memory: a[pixel][column]. A thread copies and scales the same
// vectors of 8, so that it waits for none but its own.
struct Piece {
  static constexpr int kVectors = GrnMemory::Product::kDepth / 8;
  static constexpr int kOwn = GrnMemory::Product::kRows * kVectors / kThreads;

  __device__ static int pixel(int i) { return (static_cast<int>(threadIdx.x) + i * kThreads) / kVectors; }
  __device__ static int column(int i) { return (static_cast<int>(threadIdx.x) + i * kThreads) % kVectors * 8; }
  __device__ static __half* place(__half* a, int i) { return a + pixel(i) * GrnMemory::kPitch + column(i); }

  // Zeros outside the image and beyond K.
  __device__ static void copy(const GrnLinear& p, int image, int first_pixel, int first_k, __half* a) {
    const __half* x = p.x + (int64_t{image} * p.pixels + first_pixel) * p.depth + first_k;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool exists = first_pixel + pixel(i) < p.pixels && first_k + column(i) < p.depth;
      copy_async(place(a, i), exists ? x + int64_t{pixel(i)} * p.depth + column(i) : p.x, exists);
    }
    commit_copies();
  }

  // a *= 1 + gain * inverse, rounded; gains: of the piece's columns, `depth` of which exist.
  __device__ static void scale(const float* gains, float inverse, int depth, __half* a) {
    wait_for_copies<0>();
#pragma unroll 2  // more at once would not leave registers enough for the weights
    for (int i = 0; i < kOwn; ++i) {
      if (column(i) < depth) {
        auto* vector = reinterpret_cast<uint4*>(place(a, i));
        const float4 low = *reinterpret_cast<const float4*>(gains + column(i));
        const float4 high = *reinterpret_cast<const float4*>(gains + column(i) + 4);
        const uint4 v = *vector;
        *vector = make_uint4(times(v.x, low.x, low.y, inverse), times(v.y, low.z, low.w, inverse),
                             times(v.z, high.x, high.y, inverse), times(v.w, high.z, high.w, inverse));
      }
    }
  }

  __device__ static uint32_t times(uint32_t pair, float first, float second, float inverse) {
    const float2 v = floats(pair);
    return halves(v.x * fmaf(first, inverse, 1.f), v.y * fmaf(second, inverse, 1.f));
  }
};

// A block's part of the cluster's sums: the pixels from part * 32 / splits on.
struct Answer {
  using Product = GrnMemory::Product;

  static constexpr int kPitch = Product::kStagedPitch;
  static constexpr int kBytes = sizeof(float) * Product::kGroups * Product::kRows * Product::kColumns;  // it gets

  int image, first_pixel, first_n, rows;

  __device__ Answer(const GrnLinear& p, int image, int tile_pixel, int n, int part)
      : image(image),
        first_pixel(tile_pixel + part * (Product::kRows / p.splits)),
        first_n(n),
        rows(Product::kRows / p.splits) {}

  __device__ bool exists(const GrnLinear& p, int row, int column) const {
    return first_pixel + row < p.pixels && first_n + column < p.outputs;
  }
  __device__ int64_t place(const GrnLinear& p, int row, int column) const {
    return (int64_t{image} * p.pixels + first_pixel + row) * p.outputs + first_n + column;
  }

  // Asks for residual[row][column]; waited for with the piece of x that is copied after it.
  __device__ void copy_residual(const GrnLinear& p, __half* residual) const {
    constexpr int kVectors = Product::kColumns / 8;
    for (int item = threadIdx.x; item < rows * kVectors; item += kThreads) {
      const int row = item / kVectors, column = item % kVectors * 8;
      if (exists(p, row, column)) {
        copy_async(residual + row * Product::kColumns + column, p.residual + place(p, row, column), true);
      }
    }
  }

  // Sends each row's sums to the block that adds them up: received[part][group][row of its own][column]. Two lanes
  // exchange halves, so that one has four columns of row g and the other of row g + 8. base: rank of the first part.
  __device__ void send_sums(const Product& product, int part, int base, float* received, uint64_t* arrivals) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, odd = lane % 2;
#pragma unroll
    for (int m = 0; m < Product::kRows / 16; ++m) {
      const int row = 16 * m + lane / 4 + 8 * odd, owner = row / rows;
      float* place = received + ((part * Product::kGroups + Product::group()) * rows + row % rows) * kPitch +
                     Product::first_column() + lane % 4 / 2 * 4;
#pragma unroll
      for (int j = 0; j < kWarpColumns / 8; ++j) {
        const float (&own)[4] = product.sums[m][j];
        const float first = __shfl_xor_sync(~0u, odd ? own[0] : own[2], 1);
        const float second = __shfl_xor_sync(~0u, odd ? own[1] : own[3], 1);
        const float4 sums =
            odd ? make_float4(first, second, own[2], own[3]) : make_float4(own[0], own[1], first, second);
        send(reinterpret_cast<float4*>(place + 8 * j), sums, base + owner, arrivals);
      }
    }
  }

  __device__ void finish(const GrnLinear& p, const float* received, const float4* bias, const __half* residual) const {
    constexpr int kQuads = Product::kColumns / 4;
    for (int item = threadIdx.x; item < rows * kQuads; item += kThreads) {
      const int row = item / kQuads, column = item % kQuads * 4;
      if (!exists(p, row, column)) {
        continue;
      }
      const float* own = received + row * kPitch + column;
      float4 sum = bias[column / 4];
#pragma unroll 4
      for (int i = 0; i < p.splits * Product::kGroups; ++i) {
        sum = sum + *reinterpret_cast<const float4*>(own + i * rows * kPitch);
      }
      const uint2 pairs = *reinterpret_cast<const uint2*>(residual + row * Product::kColumns + column);
      const float2 first = floats(pairs.x), second = floats(pairs.y);
      *reinterpret_cast<uint2*>(p.y + place(p, row, column)) =
          make_uint2(halves(sum.x + first.x, sum.y + first.y), halves(sum.z + second.x, sum.w + second.y));
    }
  }
};

constexpr int kLargestCluster = 8;  // that every GPU with clusters has
constexpr int kMostDepth = kLargestCluster * GrnMemory::Product::kDepth;

inline int tiles_of(const GrnLinear& p) {
  return ceil_div(p.pixels, GrnMemory::Product::kRows);
}

// Splits K so that registers hold a block's weights; the rest of a cluster of 8 are tiles that share the norms.
inline void choose_cluster(GrnLinear& p) {
  p.splits = p.tiles = 1;
  while (p.splits * GrnMemory::Product::kDepth < p.depth) {
    p.splits *= 2;
  }
  while (2 * p.tiles <= tiles_of(p) && 2 * p.tiles * p.splits <= kLargestCluster) {
    p.tiles *= 2;
  }
}

// Grid: (tiles of an image times splits, column blocks, images), clusters along the first.
static __global__ void __launch_bounds__(kThreads, 2) grn_linear_kernel(const __grid_constant__ GrnLinear p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using Product = GrnMemory::Product;
  const int cluster = p.splits * p.tiles, own = static_cast<int>(blockIdx.x) % cluster, part = own % p.splits;
  const int first_pixel = static_cast<int>(blockIdx.x) / p.splits * Product::kRows, image = blockIdx.z;
  const int first_n = static_cast<int>(blockIdx.y) * Product::kColumns, thread = threadIdx.x;
  const int first_k = part * Product::kDepth, depth = min(max(p.depth - first_k, 0), Product::kDepth);
  const GrnMemory at(p.depth, cluster);
  unsigned char* memory = shared_memory();
  auto* a = reinterpret_cast<__half*>(memory);
  auto* received = reinterpret_cast<float*>(memory + at.received);
  auto* arrivals = reinterpret_cast<uint64_t*>(memory + at.arrivals);
  const auto* gains = reinterpret_cast<const float*>(memory + at.gains);

  let_next_kernel_start();
  Product product;
  product.load_weights(p.weight, first_n, p.outputs, first_k, p.depth);
  const int own_k = (own * at.quads + thread) * 4;
  const float4 gamma = thread < at.quads && own_k < p.depth ? *reinterpret_cast<const float4*>(p.gamma + own_k)
                                                            : make_float4(0.f, 0.f, 0.f, 0.f);
  auto* bias = reinterpret_cast<float4*>(memory + at.bias);
  auto* residual = reinterpret_cast<__half*>(memory + at.residual);
  if (thread < Product::kColumns / 4) {
    const int n = first_n + 4 * thread;
    bias[thread] = n < p.outputs ? *reinterpret_cast<const float4*>(p.bias + n) : make_float4(0.f, 0.f, 0.f, 0.f);
  }
  if (thread == 0) {
    expect_bytes(arrivals, static_cast<int>(sizeof(float)) * (p.depth + cluster * kWarps));
    expect_bytes(arrivals + 1, Answer::kBytes);
  }
  arrive_at_cluster();
  wait_for_kernel_before();

  const Answer answer(p, image, first_pixel, first_n, part);
  answer.copy_residual(p, residual);
  Piece::copy(p, image, first_pixel, first_k, a);
  share_norms(p, at, memory, image, own, gamma, arrivals);
  const float inverse = inverse_mean(p, reinterpret_cast<const float*>(memory + at.sums));
  Piece::scale(gains + first_k, inverse, depth, a);
  __syncthreads();
  product.clear();
  product.multiply(a, GrnMemory::kPitch, padded_depth(depth));
  answer.send_sums(product, part, own - part, received, arrivals + 1);
  wait_for_bytes(arrivals + 1);
  answer.finish(p, received, bias, residual);
#endif
}

}  // namespace lpkernels::convnext
