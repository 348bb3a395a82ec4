// The second half of a ConvNeXt V2 block in one kernel, half precision, sums and norms in float:
//
//   n = |x|_HW / (mean_K |x|_HW + 1e-6),  y = (x * (1 + gamma * n)) W^T + bias + residual
//
// Layouts: x (B, S, K), squares (B, rows, K), W (N, K), residual and y (B, S, N), S = H * W. A block owns kRows pixels
// of an image, kColumns outputs and one of `splits` pieces of 384 of K, whose weights are in registers before the wait
// for the kernel ahead. A cluster is `tiles` tiles of pixels times the `splits` blocks that share their sums. Its
// blocks divide the K columns' norms among themselves and tell each other through distributed shared memory; each
// multiplies its x by the factors where it lies in shared memory, rounded once; at the end each adds up its groups of
// warps and sends the sums to the block that adds up those pixels, in order. What is sent counts its own arrival: no
// fence, no barrier of the cluster.
//
// As a kernel of its own, 32 pixels by 96 outputs, published stages 4096 x 384 -> 96 .. 64 x 3072 -> 768: 128 blocks of
// 16 warps each, two to a multiprocessor, 1.2 M products of the tensor cores a block, clusters of 8 tiles and no split,
// 4 and 2, 2 and 4, 1 and 8. Bytes a block: 74 KB of weights before the wait; 25 KB of x, 12 to 3 KB of squares, 6 KB
// of residual after it, up to 14 KB from the cluster. By count, instructions of a warp: 340 before the wait, and after
// it 130 to ask for squares and x, 40 for the mean (130 more in the warps that have norms), 100 to scale, 90 product,
// 20 to stage, 120 for the sums. In clocks, with four warps a scheduler: squares and x 900, norms and their exchange
// 800, scaling 300, product 500, sums 700: 1.8 microseconds.
#pragma once

#include "convnext/grn_norms.cuh"

namespace lpkernels::convnext {

// A block's pixels of x by one piece of K, in shared memory: a[pixel][column]. A thread copies and scales the same
// vectors of 8 of every eighth pixel, so that it waits for none but its own and has one vector's factors.
template <class Product>
struct Piece {
  static constexpr int kVectors = Product::kDepth / 8;
  static constexpr int kPixels = 3 * kThreads / 4 / kVectors;  // at once
  static constexpr int kOwn = Product::kRows / kPixels;

  int pixel, column;
  bool takes_part;

  __device__ explicit Piece(int thread)
      : pixel(thread / kVectors), column(thread % kVectors * 8), takes_part(pixel < kPixels) {}

  __device__ __half* place(__half* a, int i) const {
    return a + (pixel + i * kPixels) * SplitMemory<Product>::kPitch + column;
  }

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
template <class Product>
struct Answer {
  int image, first_pixel, first_n;

  __device__ int64_t place(const GrnLinear& p, int row, int column) const {
    return (int64_t{image} * p.pixels + first_pixel + row) * p.outputs + first_n + column;
  }
  __device__ bool exists(const GrnLinear& p, int row, int column) const {
    return first_pixel + row < p.pixels && first_n + column < p.outputs;
  }

  // Asks for residual[row][column]; waited for with the piece of x that is copied after it.
  __device__ void copy_residual(const GrnLinear& p, int rows, int thread, __half* residual) const {
    constexpr int kVectors = Product::kColumns / 8;
    const int row = thread / kVectors, column = thread % kVectors * 8;
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

constexpr int kMostDepth = kLargestCluster * NarrowSplit::kDepth;

LPKERNELS_HOST_DEVICE int tiles_of(const GrnLinear& p, int rows_of_block) {
  return ceil_div(p.pixels, rows_of_block);
}

// Splits K so that a block holds its weights; the rest of a cluster are tiles that share the norms.
inline void choose_cluster(GrnLinear& p, int rows_of_block, int largest) {
  p.splits = p.tiles = 1;
  while (p.splits * NarrowSplit::kDepth < p.depth) {
    p.splits *= 2;
  }
  while (2 * p.tiles <= tiles_of(p, rows_of_block) && 2 * p.tiles * p.splits <= largest) {
    p.tiles *= 2;
  }
}

// What a block does: some outputs of a tile of an image, from one piece of K.
struct GrnPlace {
  int image, first_pixel, first_n, part;
  int own, base;  // rank in its cluster of splits times tiles, and the hardware's rank of the first of them

  // Blocks in order: pieces, tiles of an image, column blocks, images.
  __device__ GrnPlace(const GrnLinear& p, int rows_of_block, int columns_of_block, int block, int rank) {
    const int cluster = p.splits * p.tiles, along = ceil_div(tiles_of(p, rows_of_block), p.tiles) * cluster;
    const int columns = ceil_div(p.outputs, columns_of_block), row = block / along, x = block % along;
    image = row / columns;
    own = x & (cluster - 1);
    base = rank - own;
    part = own & (p.splits - 1);
    first_pixel = share_of(x - part, p.splits) * rows_of_block;
    first_n = row % columns * columns_of_block;
  }
};

// Of the whole op.
template <class Work>
LPKERNELS_HOST_DEVICE int blocks_of(const GrnLinear& p, int batch) {
  return ceil_div(tiles_of(p, Work::Product::kRows), p.tiles) * p.splits * p.tiles *
         ceil_div(p.outputs, Work::Product::kColumns) * batch;
}

// A block's part of the op, in two steps: what waits for nobody, and what reads x. Between them the block waits for the
// blocks whose work x is.
template <class P>
struct GrnWork {
  using Product = P;
  using Memory = GrnMemory<Product>;

  int thread;
  unsigned char* memory;
  uint4* weights;
  uint64_t* arrivals;  // two, ready
  GrnPlace place;
  Memory at;
  Product product;
  Norms norms;  // of threads below `quads`: quad is thread
  SplitSums<Product> sums;
  Answer<Product> answer;
  Piece<Product> piece;
  float4 gamma;

  __device__ GrnWork(const GrnLinear& p, unsigned char* memory, uint4* weights, uint64_t* arrivals, int block, int rank)
      : thread(thread_index()),
        memory(memory),
        weights(weights),
        arrivals(arrivals),
        place(p, Product::kRows, Product::kColumns, block, rank),
        at(p.depth, p.splits * p.tiles),
        product(thread),
        norms(p, at.quads, place.image, block_k(), thread),
        sums(p.splits, place.part, thread),
        answer{place.image, place.first_pixel + place.part * sums.rows, place.first_n},
        piece(thread) {}

  // Asks for weights and bias.
  __device__ void prepare(const GrnLinear& p) {
    const int k = block_k() + 4 * thread;
    gamma = thread < at.quads && k < p.depth ? *reinterpret_cast<const float4*>(p.gamma + k)
                                             : make_float4(0.f, 0.f, 0.f, 0.f);
    product.load_weights(p.weight, place.first_n, p.outputs, first_k(), p.depth, weights);
    copy_bias<Product>(p.bias, place.first_n, p.outputs, thread, bias());
    if (thread == 0) {
      expect_bytes(arrivals, static_cast<int>(sizeof(float)) * (depth(p) + p.splits * p.tiles * at.senders));
      if (p.splits > 1) {
        SplitSums<Product>::expect(arrivals + 1);
      }
    }
  }

  __device__ void run(const GrnLinear& p) {
    auto* a = reinterpret_cast<__half*>(memory);
    auto* staged = reinterpret_cast<float*>(memory);
    auto* residual = reinterpret_cast<__half*>(memory + Memory::kResidual);
    float4 squares[Norms::kInFlight];
    norms.load(p, norms.from, norms.rows, squares);
    answer.copy_residual(p, sums.rows, thread, residual);
    piece.copy(p, p.x + (int64_t{place.image} * p.pixels + place.first_pixel) * p.depth + first_k(),
               p.pixels - place.first_pixel, depth(p), a);
    const float4 sum = norms.sum(p, squares);
    if (norms.slice < norms.slices) {
      reinterpret_cast<float4*>(memory + Memory::kPartial)[thread] = sum;
    }
    __syncthreads();
    norms.share(p, at, memory, block_k() + 4 * thread, place.own, place.base, gamma, arrivals);
    wait_for_bytes(arrivals, 0);
    const float inverse = inverse_mean(reinterpret_cast<const float*>(memory + Memory::kSums),
                                       p.splits * p.tiles * at.senders, p.depth, thread % 32);
    piece.scale(reinterpret_cast<const float*>(memory + Memory::kGains), inverse, depth(p), a);
    __syncthreads();
    multiply(product, a, weights);
    __syncthreads();  // a and the weights have been read: the sums take their place
    product.stage(staged);
    __syncthreads();
    sums.add_up(staged, place.base + place.own - place.part, reinterpret_cast<float*>(memory + Memory::kPartial),
                arrivals + 1, [&](int row, float4 sum) { answer.finish(p, row, sums.column, sum, bias(), residual); });
  }

  __device__ int first_k() const { return place.part * Product::kDepth; }

 private:
  // Of its piece of K.
  __device__ int depth(const GrnLinear& p) const { return min(max(p.depth - first_k(), 0), Product::kDepth); }

  __device__ int block_k() const { return place.own * at.quads * 4; }  // the first whose norm it takes
  __device__ float* bias() const { return reinterpret_cast<float*>(memory + Memory::kBias); }
};

// Grid: blocks in the order of their places.
static __global__ void __launch_bounds__(kThreads, 2) grn_linear_kernel(const __grid_constant__ GrnLinear p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const int block = blockIdx.x;
  unsigned char* memory = shared_memory();
  auto* arrivals = reinterpret_cast<uint64_t*>(memory);
  memory += kArrivalsBytes;
  auto* weights = reinterpret_cast<uint4*>(memory + GrnMemory<NarrowSplit>::kWeights);
  GrnWork<NarrowSplit> work(p, memory, weights, arrivals, block, block & (p.splits * p.tiles - 1));
  let_next_kernel_start();
  if (threadIdx.x == 0) {
    init_arrivals(arrivals);
    init_arrivals(arrivals + 1);
  }
  arrive_at_cluster();
  work.prepare(p);
  wait_for_cluster();  // all of its blocks run: their memory may be written
  wait_for_kernel_before();
  work.run(p);
#endif
}

}  // namespace lpkernels::convnext
