// The instructions behind ConvNeXt's kernels that CUDA C++ has no name for. Nothing else in csrc/convnext holds PTX, so
// that a CPU test can run the kernels with functions of the same names.
#pragma once

#include <cooperative_groups.h>
#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/dependent_launch.cuh"

namespace lpkernels::convnext {

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// threadIdx.x and blockIdx.x, read anew, so that what a loop derives from them is not kept in registers over its turns.
__device__ inline int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  __builtin_assume(0 <= index && index < 512);
  return index;
}
__device__ inline int block_index() {
  int index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  __builtin_assume(index >= 0);
  return index;
}

// Has an address in global memory worked out here and once: before a wait that comes after, not anew at every use.
template <class T>
__device__ T* worked_out(T* address) {
  size_t place = __cvta_generic_to_global(address);
  asm volatile("" : "+l"(place));
  return static_cast<T*>(__cvta_global_to_generic(place));
}

// Two halves that no kernel writes, zeros unless they exist. Volatile, so that the load stays before the wait for the
// kernel before.
__device__ inline uint32_t load_constant(const __half* from, bool exists) {
  uint32_t v;
  asm volatile(
      "{\n"
      ".reg .pred exists;\n"
      "setp.ne.b32 exists, %2, 0;\n"
      "mov.b32 %0, 0;\n"
      "@exists ld.global.nc.u32 %0, [%1];\n"
      "}"
      : "=&r"(v)
      : "l"(from), "r"(static_cast<int>(exists)));
  return v;
}

// A float that no kernel writes, zero unless it exists; volatile for the same reason.
__device__ inline float load_constant(const float* from, bool exists) {
  float v;
  asm volatile(
      "{\n"
      ".reg .pred exists;\n"
      "setp.ne.b32 exists, %2, 0;\n"
      "mov.b32 %0, 0;\n"
      "@exists ld.global.nc.f32 %0, [%1];\n"
      "}"
      : "=&f"(v)
      : "l"(from), "r"(static_cast<int>(exists)));
  return v;
}

// Four floats that no kernel writes.
__device__ inline float4 load_constant(const float* from) {
  float4 v;
  asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(from));
  return v;
}

// 16 bytes from global to shared memory, zeros unless `exists`; only then is `from` to be an address.
__device__ inline void copy_async(void* to, const void* from, bool exists) {
  const auto target = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for this thread's copies but those of the last `Pending` commits.
template <int Pending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Four matrices of 8 rows of 16 bytes, whose places the lanes say: 8 i .. 8 i + 7 those of matrix i's rows. Lane 4 g +
// t gets the columns 2t, 2t + 1 of row g of each.
__device__ inline void load_matrices(uint32_t (&m)[4], const void* row) {
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(place)
               : "memory");
}

// The transpose of 8 x 8 halves: lane 4 g + t has the columns 2t, 2t + 1 of row g.
__device__ inline uint32_t transposed(uint32_t m) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(m));
  return result;
}

// d += a b: 16x16 by 16x8. Lane = 4 g + t holds rows g and g + 8 of a, column g of b, and of d the columns 2t, 2t + 1.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same in warps of which every lane says so, without a branch.
__device__ inline void multiply_add_if(bool takes_part, float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                       uint32_t b1) {
  asm("{\n"
      ".reg .pred takes_part;\n"
      "setp.ne.b32 takes_part, %10, 0;\n"
      "@takes_part mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      "}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(static_cast<int>(takes_part)));
}

__device__ inline float approximate_reciprocal(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

__device__ inline float approximate_root(float v) {
  float result;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

__device__ inline float approximate_exp2(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// Boxes of 64 columns by some rows of matrices that lie one behind the other; a row's 16 bytes in 128 are swizzled by
// the row.
using BoxMap = CUtensorMap;

// Asks for a box, zeros outside the matrix, whose arrival is counted; one thread does.
__device__ inline void load_box(void* to, const BoxMap& map, int column, int row, int matrix, uint64_t* arrivals) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%6}], [%2];" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(&map), "r"(static_cast<unsigned>(__cvta_generic_to_shared(arrivals))), "r"(column), "r"(row), "r"(matrix),
      "r"(0)
      : "memory");
}

// Brings it to the L2.
__device__ inline void prefetch_box(const BoxMap& map, int column, int row, int matrix) {
  asm volatile("cp.async.bulk.prefetch.tensor.5d.L2.global.tile [%0, {%1, %2, %3, %4, %4}];" ::"l"(&map), "r"(column),
               "r"(row), "r"(matrix), "r"(0)
               : "memory");
}

// The two halves of a barrier of the cluster that orders no memory but what `init_arrivals` wrote.
__device__ inline void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// Where all thread blocks of a cooperative launch meet: what one wrote to global memory before it arrives is there for
// all that have waited. The counter is the launch's own, as the driver hands it out: its highest bit flips when all
// have arrived, the others are then zero again.
struct GridBarrier {
  static constexpr unsigned kFlips = 1u << 31;

  unsigned* counter;
  unsigned before;  // the first meeting

  __device__ GridBarrier() : counter(&cooperative_groups::details::get_grid_workspace()->barrier) {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(before) : "l"(counter));
  }
  // One thread of a block, for those that synchronised with it before; not before all have been constructed.
  __device__ void arrive() const {
    const unsigned step = blockIdx.x == 0 ? kFlips - (gridDim.x - 1) : 1;
    asm volatile("red.add.release.gpu.global.u32 [%0], %1;" ::"l"(counter), "r"(step) : "memory");
  }
  // Any thread; meeting: how many there were before.
  __device__ void wait(int meeting) const {
    const unsigned flips = meeting % 2 == 0 ? kFlips : 0;
    unsigned now;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    } while (((before ^ now) & kFlips) != flips);
  }
};

// Numbers that thread blocks hand each other through global memory, word by word, in any order.
__device__ inline uint4 load_words(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ inline uint32_t load_words(const uint32_t* from) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
__device__ inline void store_words(void* to, uint32_t v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
__device__ inline void store_words(void* to, uint2 v) {
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
}
__device__ inline void store_words(void* to, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// A barrier of so many threads of the block, one of 1 to 15.
template <int Barrier, int Threads>
__device__ inline void meet() {
  asm volatile("barrier.sync %0, %1;" ::"n"(Barrier), "n"(Threads) : "memory");
}

__device__ inline unsigned shared_address(const void* own) {
  return static_cast<unsigned>(__cvta_generic_to_shared(own));
}

// One thread makes `arrivals` ready to count, before the block tells its cluster that it runs.
__device__ inline void init_arrivals(uint64_t* arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrivals)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One thread says how many bytes blocks of the cluster send this one until its next wait; some may have arrived before.
__device__ inline void expect_bytes(uint64_t* arrivals, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrivals)), "r"(bytes)
               : "memory");
}

// Waits until they are there and may be read. turn: how many times these arrivals have been waited for before.
__device__ inline void wait_for_bytes(uint64_t* arrivals, int turn) {
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n"
      "@!there bra again;\n"
      "}" ::"r"(shared_address(arrivals)),
      "r"(turn & 1)
      : "memory");
}

// The address in the cluster's shared memory that `own`, an address of this block, has in block `rank`.
__device__ inline unsigned address_in(const void* own, int rank) {
  unsigned address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  return address;
}

// `bytes`, in multiples of 16, from global memory that no kernel writes, whose arrival is counted; one thread does.
__device__ inline void copy_bulk(void* to, const void* from, int bytes, uint64_t* arrivals) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(arrivals))
               : "memory");
}

// Makes what this thread wrote to shared memory visible to copies that any thread starts after a barrier.
__device__ inline void publish_to_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// `bytes`, in multiples of 16, from this block's shared memory to where block `rank` has `to`, which counts them as
// arrived. They are read at some time before that: this block must neither overwrite them nor leave.
__device__ inline void send_bytes(void* to, const void* from, int bytes, int rank, uint64_t* arrivals) {
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   address_in(to, rank)),
               "r"(shared_address(from)), "r"(bytes), "r"(address_in(arrivals, rank))
               : "memory");
}

// *own = value in block `rank`, which counts it as arrived. No fence: the value and its arrival travel together.
__device__ inline void send(float* own, float value, int rank, uint64_t* arrivals) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address_in(own, rank)),
      "r"(__float_as_uint(value)), "r"(address_in(arrivals, rank))
      : "memory");
}

__device__ inline void send(uint4* own, uint4 v, int rank, uint64_t* arrivals) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   address_in(own, rank)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(address_in(arrivals, rank))
               : "memory");
}

__device__ inline void send(float4* own, float4 v, int rank, uint64_t* arrivals) {
  const uint4 words =
      make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w));
  send(reinterpret_cast<uint4*>(own), words, rank, arrivals);
}

}  // namespace lpkernels::convnext
