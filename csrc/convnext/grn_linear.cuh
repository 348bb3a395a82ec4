// The second half of a ConvNeXt V2 block in one kernel, half precision, sums and norms in float:
//
//   n = |x|_HW / (mean_K |x|_HW + 1e-6),  y = (x * (1 + gamma * n)) W^T + bias + residual
//
// Layouts: x (B, S, K), squares (B, rows, K), W (N, K), residual and y (B, S, N), S = H * W. A block owns 32 pixels of
// an image, 96 outputs and one of `splits` pieces of 384 of K, whose weights are in registers before the wait for the
// kernel ahead. A cluster is `tiles` tiles of pixels times the `splits` blocks that share their sums. Its blocks divide
// the K columns' norms among themselves and tell each other through distributed shared memory; each multiplies its x by
// the factors where it lies in shared memory, rounded once; at the end each adds up its groups of warps and sends the
// sums to the block that adds up those pixels, in order. What is sent counts its own arrival: no fence, no barrier of
// the cluster.
//
// Published stages 4096 x 384 -> 96 .. 64 x 3072 -> 768: 128 blocks of 16 warps each, two to a multiprocessor, 1.2 M
// products of the tensor cores a block, clusters of 8 tiles and no split, 4 and 2, 2 and 4, 1 and 8. Bytes a block: 74
// KB of weights before the wait; 25 KB of x, 12 to 3 KB of squares, 6 KB of residual after it, up to 14 KB from the
// cluster. By count, instructions of a warp: 340 before the wait, and after it 130 to ask for squares and x, 40 for the
// mean (130 more in the warps that have norms), 100 to scale, 90 product, 20 to stage, 120 for the sums. In clocks,
// with four warps a scheduler: squares and x 900, norms and their exchange 800, scaling 300, product 500, sums 700: 1.8
// microseconds.
#pragma once

#include "convnext/grn_norms.cuh"

namespace lpkernels::convnext {

// A block's 32 pixels of x by one piece of K, in shared memory: a[pixel][column]. A thread copies and scales the same
// vectors of 8 of every eighth pixel, so that it waits for none but its own and has one vector's factors.
struct Piece {
  static constexpr int kVectors = GrnMemory::Product::kDepth / 8;
  static constexpr int kPixels = 3 * kThreads / 4 / kVectors;  // at once
  static constexpr int kOwn = GrnMemory::Product::kRows / kPixels;

  int pixel, column;
  bool takes_part;

  __device__ Piece()
      : pixel(static_cast<int>(threadIdx.x / kVectors)),
        column(static_cast<int>(threadIdx.x % kVectors) * 8),
        takes_part(pixel < kPixels) {}

  __device__ __half* place(__half* a, int i) const { return a + (pixel + i * kPixels) * GrnMemory::kPitch + column; }

  // Zeros outside the image and beyond K. x: the piece's first number; pixels: of the image from there on.
  __device__ void copy(const GrnLinear& p, const __half* x, int pixels, int depth, __half* a) const {
    const __half* from = x + int64_t{pixel} * p.depth + column;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool exists = pixel + i * kPixels < pixels && column < depth;
      if (takes_part) {
        copy_async(place(a, i), from + int64_t{i * kPixels} * p.depth, exists);
      }
    }
    commit_copies();
  }

  // a *= 1 + gain * inverse, rounded; gains: of the piece's columns, `depth` of which exist.
  __device__ void scale(const float* gains, float inverse, int depth, __half* a) const {
    wait_for_copies<0>();
    if (!takes_part || column >= depth) {
      return;
    }
    const float4 low = *reinterpret_cast<const float4*>(gains + column);
    const float4 high = *reinterpret_cast<const float4*>(gains + column + 4);
    float factors[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (float& factor : factors) {
      factor = fmaf(factor, inverse, 1.f);
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      auto* vector = reinterpret_cast<uint4*>(place(a, i));
      const uint4 v = *vector;
      *vector =
          make_uint4(times(v.x, factors), times(v.y, factors + 2), times(v.z, factors + 4), times(v.w, factors + 6));
    }
  }

  __device__ static uint32_t times(uint32_t pair, const float* factors) {
    const float2 v = floats(pair);
    return halves(v.x * factors[0], v.y * factors[1]);
  }
};

// What becomes of the sums of this block's pixels.
struct Answer {
  using Product = GrnMemory::Product;

  int image, first_pixel, first_n;

  __device__ int64_t place(const GrnLinear& p, int row, int column) const {
    return (int64_t{image} * p.pixels + first_pixel + row) * p.outputs + first_n + column;
  }
  __device__ bool exists(const GrnLinear& p, int row, int column) const {
    return first_pixel + row < p.pixels && first_n + column < p.outputs;
  }

  // Asks for residual[row][column]; waited for with the piece of x that is copied after it.
  __device__ void copy_residual(const GrnLinear& p, int rows, __half* residual) const {
    constexpr int kVectors = Product::kColumns / 8;
    const int row = static_cast<int>(threadIdx.x / kVectors), column = static_cast<int>(threadIdx.x % kVectors) * 8;
    if (row < rows && exists(p, row, column)) {
      copy_async(residual + row * Product::kColumns + column, p.residual + place(p, row, column), true);
    }
  }

  __device__ void finish(const GrnLinear& p, int row, int column, float4 sum, const float* bias,
                         const __half* residual) const {
    if (exists(p, row, column)) {
      sum = sum + *reinterpret_cast<const float4*>(bias + column);
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
  const int cluster = p.splits * p.tiles, own = static_cast<int>(blockIdx.x) & (cluster - 1);
  const int part = own & (p.splits - 1), image = blockIdx.z, thread = threadIdx.x;
  const int first_pixel = share_of(blockIdx.x - part, p.splits) * Product::kRows;
  const int first_n = static_cast<int>(blockIdx.y) * Product::kColumns;
  const int first_k = part * Product::kDepth, depth = min(max(p.depth - first_k, 0), Product::kDepth);
  const GrnMemory at(p.depth, cluster);
  unsigned char* memory = shared_memory();
  auto* a = reinterpret_cast<__half*>(memory);
  auto* staged = reinterpret_cast<float*>(memory);
  auto* weights = reinterpret_cast<uint4*>(memory + GrnMemory::kWeights);
  auto* bias = reinterpret_cast<float*>(memory + GrnMemory::kBias);
  auto* residual = reinterpret_cast<__half*>(memory + GrnMemory::kResidual);
  auto* received = reinterpret_cast<float*>(memory + GrnMemory::kPartial);
  auto* arrivals = reinterpret_cast<uint64_t*>(memory + GrnMemory::kArrivals);

  let_next_kernel_start();
  Product product;
  product.load_weights(p.weight, first_n, p.outputs, first_k, p.depth, weights);
  const int block_k = own * at.quads * 4;
  const Norms norms(p, at.quads, image, block_k);  // of threads below `quads`: quad is thread
  const float4 gamma = thread < at.quads && norms.exists
                           ? *reinterpret_cast<const float4*>(p.gamma + block_k + 4 * thread)
                           : make_float4(0.f, 0.f, 0.f, 0.f);
  copy_bias(p.bias, first_n, p.outputs, bias);
  if (thread == 0) {
    init_arrivals(arrivals);
    expect_bytes(arrivals, static_cast<int>(sizeof(float)) * (p.depth + cluster * at.senders));
    SplitSums::expect(arrivals + 1);
  }
  arrive_at_cluster();
  const SplitSums sums(p.splits, part);
  const Answer answer{image, first_pixel + part * sums.rows, first_n};
  const Piece piece;
  wait_for_kernel_before();

  float4 squares[Norms::kInFlight];
  norms.load(p, norms.from, norms.rows, squares);
  answer.copy_residual(p, sums.rows, residual);
  piece.copy(p, p.x + (int64_t{image} * p.pixels + first_pixel) * p.depth + first_k, p.pixels - first_pixel, depth, a);
  const float4 sum = norms.sum(p, squares);
  if (norms.slice < norms.slices) {
    reinterpret_cast<float4*>(memory + GrnMemory::kPartial)[thread] = sum;
  }
  __syncthreads();
  wait_for_cluster();  // all of its blocks run: their memory may be written
  norms.share(at, memory, own, cluster, gamma, arrivals);
  wait_for_bytes(arrivals);
  const float inverse =
      inverse_mean(reinterpret_cast<const float*>(memory + GrnMemory::kSums), cluster * at.senders, p.depth);
  piece.scale(reinterpret_cast<const float*>(memory + GrnMemory::kGains) + first_k, inverse, depth, a);
  __syncthreads();
  multiply(product, a, weights);
  __syncthreads();  // a and the weights have been read: the sums take their place
  product.stage(staged);
  __syncthreads();
  sums.add_up(staged, own - part, received, arrivals + 1,
              [&](int row, float4 sum) { answer.finish(p, row, sums.column, sum, bias, residual); });
#endif
}

}  // namespace lpkernels::convnext
