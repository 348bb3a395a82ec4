// Marks a small function that host and device code share, so that a CPU test checks the arithmetic of a CUDA kernel.
#pragma once

#if defined(__CUDACC__)
#define LPKERNELS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LPKERNELS_HOST_DEVICE inline
#endif
