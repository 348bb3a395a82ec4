// The sum of a tile over the blocks of a cluster, each of which has a part of K.
//
//   sum[m, n] = acc of rank 0 [m, n] + acc of rank 1 [m, n] + ...      in this order
//
// An item is what a warp holds of one group of outputs in Rows of each lane's rows: 8 neighbouring outputs of each.
// Items belong to the ranks in turn. A block sends those of others from its registers into their shared memory, where a
// barrier counts the bytes, and adds its own to what it received. Layout of that: [sender][item][quad][lane] of four
// floats, so that a warp writes and reads 512 bytes in a row. No barrier ends it: once a block has all its parts
// nothing else is on its way to it, and nobody reads its memory. Bound by the network between the multiprocessors,
// which brings each block (split - 1) / split of a tile.
#pragma once

#include "hopper/products.cuh"

#include <cute/arch/cluster_sm90.hpp>

namespace lpkernels::hopper {

// Four floats to where `address` says in the cluster's shared memory; the barrier there counts them when they arrive.
__device__ inline void send(uint32_t address, const float (&v)[4], uint32_t arrivals) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(arrivals)
      : "memory");
}

// Rows: 1, or 2 where those 8 apart must come together.
template <class Config, int Rows>
struct ClusterSums {
  using F = Fragment<8>;
  static constexpr int kRowItems = Config::BlockM / 64 / Rows;  // of a warp, for one group of outputs
  static constexpr int kOfWarp = kRowItems * (Config::BlockN / F::kGroup);
  static constexpr int kItems = 8 * kOfWarp;
  static constexpr int kQuads = 2 * Rows, kQuadBytes = 32 * sizeof(float4), kItemBytes = kQuads * kQuadBytes;
  static constexpr int kParts = 128;  // bytes before the parts, for the barrier
  static_assert((Rows == 1 || Rows == 2) && Config::BlockN % F::kGroup == 0);

  // Items of rank 0, which has the most.
  static constexpr LPKERNELS_HOST_DEVICE int most(int split) { return (kItems + split - 1) / split; }

  static constexpr size_t bytes() {
    int parts = 0;
    for (int split = 2; split <= kLargestCluster; ++split) {
      parts = std::max(parts, (split - 1) * most(split));
    }
    return kParts + size_t{kItemBytes} * parts;
  }

  // By one thread, before the block arrives at the cluster's barrier: the others may send after that.
  __device__ static void expect(int split, unsigned char* memory) {
    const int own = static_cast<int>(cute::block_rank_in_cluster()), items = (kItems - own + split - 1) / split;
    auto& arrivals = reinterpret_cast<FullBarrier&>(*memory);
    arrivals.init(1);
    cutlass::arch::fence_barrier_init();
    arrivals.arrive_and_expect_tx(items * (split - 1) * kItemBytes);
  }

  // Calls finish(tile_m, s, j, v) for this block's items: v, the sums of Rows rows, the first of them row s of product
  // tile_m, and group j. All lanes of a warp call it together. One copy of its code: most of it runs once, and fetching
  // that takes longer than picking the accumulators.
  template <class Accumulator, class Finish>
  __device__ static void add_up(int split, const Accumulator& acc, int thread, const unsigned char* memory,
                                Finish&& finish) {
    const int own = static_cast<int>(cute::block_rank_in_cluster()), lane = thread % 32;
    const int sender_bytes = most(split) * kItemBytes;
    const uint32_t here = cute::cast_smem_ptr_to_uint(memory);
    const Owners owners(split, thread / 32);
    cute::cluster_wait();  // until then another block may not expect anything
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kOfWarp; ++i) {
      const Owner item = owners.of(i);
      if (item.rank == own) {
        continue;
      }
      const uint32_t there = cute::set_block_rank(here, item.rank);
      const int sender = own - (own > item.rank);  // among the others of that rank
      const uint32_t place = there + kParts + sender * sender_bytes + item.place * kItemBytes + lane * sizeof(float4);
      CUTLASS_PRAGMA_UNROLL
      for (int quad = 0; quad < kQuads; ++quad) {
        float v[4];
        CUTLASS_PRAGMA_UNROLL
        for (int e = 0; e < 4; ++e) {
          v[e] = acc(index(i, quad, e));
        }
        send(place + quad * kQuadBytes, v, there);
      }
    }
    const_cast<FullBarrier&>(reinterpret_cast<const FullBarrier&>(*memory)).wait(0);
    asm volatile("" ::: "memory");  // the compiler must not read the parts before
    CUTLASS_PRAGMA_NO_UNROLL
    for (int i = 0; i < kOfWarp; ++i) {
      const Owner item = owners.of(i);
      if (item.rank != own) {
        continue;
      }
      float mine[kQuads][4] = {}, v[Rows][8] = {};
      CUTLASS_PRAGMA_UNROLL
      for (int known = 0; known < kOfWarp; ++known) {
        if (known == i) {
          CUTLASS_PRAGMA_UNROLL
          for (int k = 0; k < 4 * kQuads; ++k) {
            mine[k / 4][k % 4] = acc(index(known, k / 4, k % 4));
          }
        }
      }
      const auto* part = reinterpret_cast<const float4*>(memory + kParts + item.place * kItemBytes) + lane;
      CUTLASS_PRAGMA_NO_UNROLL
      for (int rank = 0; rank < split; ++rank) {
        const bool received = rank != own;
        CUTLASS_PRAGMA_UNROLL
        for (int quad = 0; quad < kQuads; ++quad) {
          const float* of_own = mine[quad];
          const float4 term = received ? part[quad * 32] : make_float4(of_own[0], of_own[1], of_own[2], of_own[3]);
          v[quad / 2][quad % 2 * 4] += term.x;
          v[quad / 2][quad % 2 * 4 + 1] += term.y;
          v[quad / 2][quad % 2 * 4 + 2] += term.z;
          v[quad / 2][quad % 2 * 4 + 3] += term.w;
        }
        part += received ? sender_bytes / static_cast<int>(sizeof(float4)) : 0;
      }
      finish(row_item(i) / 2, row_item(i) % 2, i / kRowItems, v);
    }
  }

 private:
  // The lane's first row of item i, counted as tile_m * 2 + s.
  static LPKERNELS_HOST_DEVICE constexpr int row_item(int i) { return i % kRowItems * Rows; }

  // The accumulator of value e of a quad of item i.
  static LPKERNELS_HOST_DEVICE constexpr int index(int i, int quad, int e) {
    const int row = row_item(i) + quad / 2;
    return F::index(Config::BlockN, row / 2, row % 2, i / kRowItems, quad % 2 * 4 + e);
  }

  struct Owner {
    int rank, place;  // place: the item's number among the rank's
  };

  // Warps begin at different ranks, lest all blocks send to the same one at a time.
  struct Owners {
    int split, inverse, first, turn;

    __device__ Owners(int split, int warp)
        : split(split), inverse(65536 / split + 1), first(warp * kOfWarp), turn(warp % kOfWarp) {}

    __device__ Owner of(int i) const {
      const int item = first + (i + turn < kOfWarp ? i + turn : i + turn - kOfWarp);
      const int place = item * inverse >> 16;  // item / split, for fewer than 65536 / split items
      return {item - place * split, place};
    }
  };
};

}  // namespace lpkernels::hopper
