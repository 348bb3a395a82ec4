// Shared memory of depthwise_linear, and how the blocks of a cluster, each of which convolves some chunks of a tile's
// channels, give each other their v: a[place][vector of 8 channels][pixel], by one bulk copy from each block to each
// other.
//
// A block has its own chunks at the last places and the others' in the order of their ranks from the next on, so that
// only theirs may lie where its halos were.
#pragma once

#include "convnext/depthwise_conv.cuh"
#include "convnext/pixel_norm.cuh"

namespace lpkernels::convnext {

// The chunks that block `own` of a cluster convolves, of all.
struct Chunks {
  int all, most, first, count;

  __device__ Chunks(int channels, int cluster, int own)
      : all(ceil_div(channels, kChunk)),
        most(share_of(all, cluster)),
        first(own * most),
        count(max(min(all - first, most), 0)) {}
};

// Of a chunk that is to be convolved.
template <int PatchH>
struct Slot {
  alignas(16) __half halo[HaloShape<PatchH, kVectors>::kSize];
  PackedTaps<kVectors> taps;
};

// Where a block's shared memory has what, the same in every block of a cluster: the weights, then
// halos and taps of two chunks, then a. Where there is no room for that, the others' chunks of a take the halos'
// place when all blocks have convolved. In the place of all of this the sums, then their squares by slice.
template <class Product, int PatchH>
struct DepthwiseMemory : DepthwiseOffsets {
  static constexpr int kPixels = PatchH * kPatchW;
  static constexpr int kPlaces =
      Product::kDepth / kChunk;  // of chunks in a: a power of two, and a cluster's most or more
  static constexpr int kChunkSize = kPixels * kChunk;
  static constexpr int kChunkBytes = static_cast<int>(sizeof(__half)) * kChunkSize;
  static constexpr int kSlots = Product::kWeightBytes;
  static constexpr int kSquares = Product::kStagedBytes;

  // most_bytes: what there is; a overlaps the halos where it does not suffice.
  DepthwiseMemory(int channels, int cluster, int most_bytes) {
    const int most = share_of(ceil_div(channels, kChunk), cluster);
    constexpr int kA = kChunkBytes * kPlaces;
    const int slots = (most < 2 ? most : 2) * static_cast<int>(sizeof(Slot<PatchH>)),
              least = slots + kChunkBytes * most;
    place(kSlots + slots + kA);
    if (bytes > most_bytes) {
      place(kSlots + (least > kA ? least : kA));
    }
    apart = a >= kSlots + slots;
    static_assert(Product::kDepth == kPlaces * kChunk && std::has_single_bit(unsigned{kPlaces}));
  }

  // The chunk's place in block `rank`.
  __device__ static int place_of(const Chunks& chunks, int chunk, int rank) {
    return (chunk - (rank + 1) * chunks.most) & (kPlaces - 1);
  }

 private:
  void place(int end_of_a) {
    constexpr int kRow = sizeof(float) * Product::kColumns;
    constexpr int kSumsEnd = kSquares + sizeof(float4) * Product::kQuads * Product::kSlices;
    a = end_of_a - kChunkBytes * kPlaces;
    bias = end_of_a > kSumsEnd ? end_of_a : kSumsEnd;
    weight_totals = bias + kRow;
    weight_sums = weight_totals + kRow;
    statistics = weight_sums + Product::kWeightSumsBytes;
    norms = statistics + sizeof(float2) * PixelSums<Product>::kParts * kPixels;
    targets = norms + sizeof(float2) * kPixels;
    bytes = targets + sizeof(int) * kPixels;
  }
};

// a beyond the last chunk, where the product reads on: zeros.
template <class Memory>
__device__ void clear_rest(const Chunks& chunks, int own, int thread, __half* a) {
#pragma unroll 1
  for (int chunk = chunks.all; chunk < Memory::kPlaces; ++chunk) {
    auto* to = reinterpret_cast<uint4*>(a + Memory::place_of(chunks, chunk, own) * Memory::kChunkSize);
#pragma unroll 1
    for (int i = thread; i < Memory::kChunkBytes / 16; i += kThreads) {
      to[i] = make_uint4(0, 0, 0, 0);
    }
    publish_to_copies();  // and to the tensor cores
  }
}

// Sends the block's own chunks to the others, from a warp each: a warp's would be one after the other. base: the
// hardware's rank of the first of them.
template <class Memory>
__device__ void share_chunks(const Chunks& chunks, int own, int base, int cluster, int thread, __half* a,
                             uint64_t* arrivals) {
  const int warp = thread / 32;
  if (thread % 32 == 0 && warp < cluster - 1 && chunks.count > 0) {
    const int to = (own + 1 + warp) & (cluster - 1);
    send_bytes(a + Memory::place_of(chunks, chunks.first, to) * Memory::kChunkSize,
               a + Memory::place_of(chunks, chunks.first, own) * Memory::kChunkSize, chunks.count * Memory::kChunkBytes,
               base + to, arrivals);
  }
}

// sums = v W^T, and the sums of v.
template <class Memory, class Product>
__device__ void multiply(Product& product, const Chunks& chunks, int own, const __half* a, const uint4* weights,
                         PixelSums<Product>& pixel_sums) {
  const int lane = product.lane();
  const __half* vectors[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    vectors[i] = a + Memory::place_of(chunks, 2 * product.group() + i, own) * Memory::kChunkSize +
                 (lane / 16 * Memory::kPixels + lane % 16) * 8;
  }
  constexpr int kSlices = kChunk / 16;
  product.multiply(
      weights,
      [&](int m, int i) { return vectors[i / kSlices] + (i % kSlices * 2 * Memory::kPixels + product.row(m)) * 8; },
      [&](int m, int i, const uint32_t (&rows)[4]) {
        if (m == 0) {
          pixel_sums.add(i / kSlices, rows);
        }
      });
}

}  // namespace lpkernels::convnext
