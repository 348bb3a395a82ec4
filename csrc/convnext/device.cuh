// The instructions behind ConvNeXt's kernels that CUDA C++ has no name for. Nothing else in csrc/convnext holds PTX, so
// that a CPU test can run the kernels with functions of the same names.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "common/dependent_launch.cuh"

namespace lpkernels::convnext {

__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
}

// 16 bytes that no kernel writes. Volatile, so that the load stays before the wait for the kernel before.
__device__ inline uint4 load_constant(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}

// 16 bytes from global to shared memory, zeros unless `exists`; `from` is to be a valid address in either case.
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

// d += a b: 16x16 by 16x8. Lane = 4 g + t holds rows g and g + 8 of a, column g of b, and of d the columns 2t, 2t + 1.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float approximate_reciprocal(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

__device__ inline float approximate_exp2(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// The two halves of a barrier of the cluster that orders no memory.
__device__ inline void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// A barrier of the cluster: what was written before it is seen after it.
__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The address in the cluster's shared memory that `own`, an address of this block, has in block `rank`.
__device__ inline uint32_t address_in(const void* own, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(static_cast<unsigned>(__cvta_generic_to_shared(own))), "r"(rank));
  return address;
}

// *own = value, in block `rank`.
__device__ inline void store_in(float* own, int rank, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address_in(own, rank)), "f"(value) : "memory");
}

__device__ inline void store_in(float2* own, int rank, float2 value) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address_in(own, rank)), "f"(value.x), "f"(value.y)
               : "memory");
}

__device__ inline void store_in(float4* own, int rank, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address_in(own, rank)), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}

__device__ inline void store_in(uint4* own, int rank, uint4 v) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address_in(own, rank)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

// *own of block `rank`.
__device__ inline float4 load_in(const float4* own, int rank) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address_in(own, rank)));
  return v;
}

}  // namespace lpkernels::convnext
