// The first half of a ConvNeXt V2 block in one kernel, channels-last, half precision, sums and norms in float:
//
//   v = conv7x7(x, taps, groups = C) + taps_bias,  a = (v - mean_C v) / sqrt(var_C v + 1e-6),  h = gelu(a W^T + b)
//   squares[tile, n] = sum over the tile's pixels of h^2
//
// Layouts: x (B, H, W, C), taps (7, 7, C) float, W (N, C), h (B, H, W, N), squares (B, tiles, N). A block owns a tile
// of PatchH x 8 pixels of an image and kColumns of the N outputs. The blocks of a cluster have the same tile: each
// convolves some chunks of 48 channels, rounds v to half precision and sends it to the others, so that the convolution
// is repeated little (twice in the third published stage, eight times in the last, whose tiles are few). The product is
// that of v: the norm is applied to its sums. Weights, taps and biases are asked for before the wait for the kernel
// ahead, the weights summed up while v travels.
//
// Published stages 4096 x 96 .. 64 x 768 (pixels x channels), 128 blocks of 16 warps each, two to a multiprocessor: 1.2
// M products of the tensor cores a block, and a quarter more (half in the last stage) for the sums of v; 64, 32, 32, 32
// pixels x 48, 48, 48, 96 channels to convolve, by 12, 6, 6, 12 warps; bytes a block: 74 KB of weights before the wait,
// 13 to 27 KB of x after it, 7 to 50 KB from the cluster. It is a sequence of waits, for x out of the L2, for tensor
// cores and for the other blocks of the cluster.
#pragma once

#include "convnext/depthwise_finish.cuh"

namespace lpkernels::convnext {

// A block's part of the op, in two steps: what waits for nobody, and what reads x. Between them the block waits for the
// blocks whose work x is.
template <int PatchH, class P>
struct DepthwiseWork {
  static constexpr int kPatchH = PatchH;
  static constexpr int kPixels = PatchH * kPatchW;
  using Product = P;
  static_assert(Product::kRows == kPixels);
  using Memory = DepthwiseMemory<Product, PatchH>;

  int thread;
  unsigned char* memory;
  uint4* weights;
  uint64_t* arrivals;  // one, ready
  DepthwisePlace place;
  Halo<PatchH> source;

  __device__ DepthwiseWork(const DepthwiseLinear& p, unsigned char* memory, uint4* weights, uint64_t* arrivals,
                           int block, int rank)
      : thread(thread_index()),
        memory(memory),
        weights(weights),
        arrivals(arrivals),
        place(p, PatchH, Product::kColumns, block, rank),
        source(p, place.image, place.top, place.left, thread) {}

  // Asks for weights, taps and biases.
  __device__ void prepare(const DepthwiseLinear& p) const {
    const Chunks chunks(p.channels, p.cluster, place.own);
    auto* bias = reinterpret_cast<float*>(memory + p.at.bias);
    if (thread < Product::kQuads) {
      const int n = 4 * thread;
      copy_async(bias + n, p.bias + place.first_n + n, place.first_n + n < p.outputs);
    }
    Taps<kChunk> columns[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i < chunks.count) {
        columns[i].load(p.taps, p.taps_bias, (chunks.first + i) * kChunk, p.channels, thread, slot(i).taps);
      }
    }
    Product(thread).load_shared(p.weight, place.first_n, p.outputs, 0, p.channels, weights);
    commit_copies();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i < chunks.count) {
        columns[i].store(slot(i).taps, thread);
      }
    }
    if (thread < kPixels) {
      const int pixel = thread, y = place.top + pixel / kPatchW, x = place.left + pixel % kPatchW;
      reinterpret_cast<int*>(memory + p.at.targets)[pixel] = y < p.height && x < p.width ? y * p.width + x : -1;
    }
  }

  __device__ void run(const DepthwiseLinear& p) const {
    const Chunks chunks(p.channels, p.cluster, place.own);
    auto* sums = reinterpret_cast<float*>(memory);
    auto* a = reinterpret_cast<__half*>(memory + p.at.a);
    auto* statistics = reinterpret_cast<float2*>(memory + p.at.statistics);
    auto* norms = reinterpret_cast<float2*>(memory + p.at.norms);
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
          Taps<kChunk> columns;
          columns.load(p.taps, p.taps_bias, chunk * kChunk, p.channels, thread, slot(i).taps);
          columns.store(slot(i).taps, thread);
        }
        source.load(p, chunk, slot(i).halo);
      }
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
      __half* v = a + Memory::place_of(chunks, chunks.first + first, place.own) * Memory::kChunkSize;
#pragma unroll 1
      for (int i = 0; i < chunks_here; ++i) {  // the second by other warps first
        constexpr int kUnits = kVectors * PatchH / kBand * 32;
        convolve<PatchH, kVectors, kWarps>(
            (thread + i * (kThreads - kUnits)) % kThreads, slot(i).halo, slot(i).taps, [] {},
            [&](int at, uint32_t pair) { *reinterpret_cast<uint32_t*>(v + i * Memory::kChunkSize + at) = pair; });
      }
    }
    publish_to_copies();
    if (!p.at.apart) {
      arrive_at_cluster();
      wait_for_cluster();  // their halos, where a is to be, have been read
    }
    clear_rest<Memory>(chunks, place.own, thread, a);
    __syncthreads();
    if (thread == 0) {
      expect_bytes(arrivals, (chunks.all - chunks.count) * Memory::kChunkBytes);
    }
    share_chunks<Memory>(chunks, place.own, place.base, p.cluster, thread, a, arrivals);
    Product product(thread);
    product.load_held(p.weight, place.first_n, p.outputs, 0, p.channels);
    wait_for_copies<0>();  // a block may have no chunk to wait for
    add_up_weights(product, weights, reinterpret_cast<float*>(memory + p.at.weight_sums), weight_totals(p));
    wait_for_bytes(arrivals, 0);
    arrive_at_cluster();

    PixelSums<Product> pixel_sums(product);
    multiply<Memory>(product, chunks, place.own, a, weights, pixel_sums);
    pixel_sums.store(statistics);
    wait_for_cluster();  // what this block sent has arrived
    __syncthreads();     // a and the weights have been read: the sums take their place
    if (thread < kPixels) {
      norms[thread] = norm_of<Product>(statistics, thread, p.channels);
    }
    product.stage(sums);
    __syncthreads();
    __half* h = p.h + int64_t{place.image} * p.height * p.width * p.outputs + place.first_n;
    float* squares = p.squares + (int64_t{place.image} * p.tiles + place.tile) * p.outputs + place.first_n;
    const StagedSums staged{.sums = sums,
                            .norms = norms,
                            .targets = reinterpret_cast<const int*>(memory + p.at.targets),
                            .weight_totals = weight_totals(p),
                            .bias = reinterpret_cast<const float*>(memory + p.at.bias),
                            .partial = reinterpret_cast<float4*>(memory + Memory::kSquares)};
    finish<Product>(
        staged, p.outputs - place.first_n, thread,
        [&](int target, int column, uint2 values) {
          *reinterpret_cast<uint2*>(h + int64_t{target} * p.outputs + column) = values;
        },
        [&](int column, float4 sums) { *reinterpret_cast<float4*>(squares + column) = sums; });
  }

 private:
  __device__ Slot<PatchH>& slot(int i) const { return reinterpret_cast<Slot<PatchH>*>(memory + Memory::kSlots)[i]; }
  __device__ float* weight_totals(const DepthwiseLinear& p) const {
    return reinterpret_cast<float*>(memory + p.at.weight_totals);
  }
};

// Of the whole op.
template <class Work>
LPKERNELS_HOST_DEVICE int blocks_of(const DepthwiseLinear& p, int batch) {
  return ceil_div(p.outputs, Work::Product::kColumns) * p.tiles * batch;
}

// Grid: blocks in the order of their places.
template <class Work>
__global__ void __launch_bounds__(kThreads, 2) depthwise_linear_kernel(const __grid_constant__ DepthwiseLinear p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  const int block = blockIdx.x;
  unsigned char* memory = shared_memory();
  auto* arrivals = reinterpret_cast<uint64_t*>(memory);
  memory += kArrivalsBytes;
  const Work work(p, memory, reinterpret_cast<uint4*>(memory), arrivals, block, block & (p.cluster - 1));
  let_next_kernel_start();
  if (threadIdx.x == 0) {
    init_arrivals(arrivals);
  }
  arrive_at_cluster();
  work.prepare(p);
  wait_for_cluster();  // all of its blocks run: their memory may be written
  wait_for_kernel_before();
  work.run(p);
#endif
}

// Bytes of shared memory for a block, of two on a multiprocessor.
constexpr int kHalfOfMultiprocessor = 112 << 10;

// An instance of the kernel, for so many channels as a block holds weights of.
template <int PatchH, int GroupsK, int Held>
struct DepthwiseVariant {
  using Work = DepthwiseWork<PatchH, HeldProduct<PatchH * kPatchW / kWarpRows, GroupsK, Held>>;
  using Product = typename Work::Product;
  static constexpr auto kKernel = &depthwise_linear_kernel<Work>;

  static DepthwiseOffsets memory(int channels, int cluster) {
    return typename Work::Memory(channels, cluster, kHalfOfMultiprocessor);
  }
  static size_t shared_bytes(int channels, int cluster) { return kArrivalsBytes + memory(channels, cluster).bytes; }
};
using LargeDepthwise = DepthwiseVariant</*PatchH=*/8, /*GroupsK=*/1, /*Held=*/1>;  // many pixels, 96 channels
using NarrowDepthwise = DepthwiseVariant<4, 2, 0>;                                 // 192 channels
using MiddleDepthwise = DepthwiseVariant<4, 4, 1>;                                 // 384
using WideDepthwise = DepthwiseVariant<4, 8, 1>;                                   // 768

// Rows of a tile. lpkernels/ref/depthwise_linear.py has the same rule: `squares` has a row for each tile.
inline int patch_height(const DepthwiseLinear& p) {
  return p.height * p.width >= 2048 && p.channels <= LargeDepthwise::Product::kDepth ? 8 : 4;
}

inline int tiles_of(const DepthwiseLinear& p, int patch_height) {
  return ceil_div(p.height, patch_height) * ceil_div(p.width, kPatchW);
}

// As many blocks of a tile as a portable cluster holds, each with a chunk of the channels at least.
inline int cluster_for(const DepthwiseLinear& p, int columns, int largest) {
  int cluster = 1;
  while (cluster < largest && 2 * cluster <= ceil_div(p.channels, kChunk) && columns % (2 * cluster) == 0) {
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
