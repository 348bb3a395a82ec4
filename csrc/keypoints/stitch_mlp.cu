// stitch_mlp on any CUDA device (sm_75 and later); equation and the weights' layout in stitch_mlp.h.
//
// A block owns one batch element. In a layer each thread owns four neighbouring outputs and every slices-th input; with
// all threads' inputs and columns in order, a round of loads is one dense piece of the weights. Partial sums meet in
// shared memory. Weights that fit there come before the wait for the kernel ahead (180 KB in the stitching MLP, 2 us at
// what one multiprocessor gets out of the L2), else layer by layer. Bound by the latency of a layer, so a thread asks
// for its first kHeld rows of the next layer before it waits for the sums of this one.
#include <cuda_pipeline.h>

#include "common/cuda.h"
#include "common/dependent_launch.cuh"
#include "common/kernel_table.h"
#include "keypoints/stitch_mlp.h"

namespace lpkernels {
namespace {

constexpr int kThreads = 512;
constexpr int kHeld = 8;  // 128 -> 128 outputs: all rows that a thread has
static_assert(kThreads >= kMaxWidth, "a thread for each output of a layer");
constexpr size_t kOwnBytes = sizeof(float4) * kThreads + sizeof(float) * kMaxWidth;  // of shared memory, beside weights

// A thread's part of one layer: rows first, first + slices, ... of the weights, four columns wide.
struct Part {
  const float* weights;
  int inputs, outputs;  // outputs: padded
  int slices, first, column;

  __device__ Part(const StitchMlp& p, int layer, const float* layer_weights)
      : weights(layer_weights), inputs(p.sizes[layer]), outputs(padded_outputs(p.sizes[layer + 1])) {
    const int columns = outputs / 4, thread = static_cast<int>(threadIdx.x);
    slices = kThreads / columns;
    column = thread % columns;
    first = thread / columns < slices ? thread / columns : inputs;  // threads left over have no rows
  }

  __device__ void load(int from, float4 (&held)[kHeld]) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int row = from + i * slices;
      held[i] = row < inputs ? reinterpret_cast<const float4*>(weights + row * outputs)[column]
                             : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }

  __device__ float bias() const {
    const int output = static_cast<int>(threadIdx.x);
    return output < outputs ? weights[inputs * outputs + output] : 0.f;
  }

  __device__ void accumulate(int from, const float4 (&held)[kHeld], const float* activations, float4& sum) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int row = from + i * slices;
      if (row < inputs) {
        const float activation = activations[row];
        sum.x += activation * held[i].x;
        sum.y += activation * held[i].y;
        sum.z += activation * held[i].z;
        sum.w += activation * held[i].w;
      }
    }
  }
};

// Brings the weights into the L2, from where a frame's other networks have pushed them, while the first layer runs.
__device__ void prefetch(const float* weights, int64_t count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(weights)),
               "r"(static_cast<unsigned>(count * sizeof(float)))
               : "memory");
#endif
}

// By all threads of the block, which meet.
__device__ void copy_weights(const StitchMlp& p, float4* to) {
  for (int i = static_cast<int>(threadIdx.x); i < p.weight_count / 4; i += kThreads) {
    __pipeline_memcpy_async(to + i, reinterpret_cast<const float4*>(p.weights) + i, sizeof(float4));
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
}

// fits: shared memory holds the weights, which are to come while the kernel ahead runs.
__global__ void __launch_bounds__(kThreads) stitch_mlp_kernel(const __grid_constant__ StitchMlp p, bool fits) {
  extern __shared__ float4 weights[];
  __shared__ float4 partial[kThreads];
  __shared__ float activations[kMaxWidth];
  const int64_t b = blockIdx.x;
  const int thread = threadIdx.x;
  let_next_kernel_start();
  if (fits) {
    copy_weights(p, weights);
  } else if (thread == 0) {
    prefetch(p.weights, p.weight_count);
  }
  Part part(p, 0, fits ? reinterpret_cast<const float*>(weights) : p.weights);
  float4 held[kHeld];
  part.load(part.first, held);
  float bias = part.bias();
  wait_for_kernel_before();
  if (thread < p.sizes[0]) {
    activations[thread] = feature(p, b, thread);
  }
  __syncthreads();

  for (int layer = 0; layer < p.layers; ++layer) {
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    part.accumulate(part.first, held, activations, sum);
    const int step = kHeld * part.slices;
    for (int from = part.first + step; from < part.inputs; from += step) {
      part.load(from, held);
      part.accumulate(from, held, activations, sum);
    }
    partial[thread] = sum;
    const int outputs = part.outputs, slices = part.slices;
    float value = bias;
    const bool last = layer + 1 == p.layers;
    if (!last) {
      part = Part(p, layer + 1, part.weights + (part.inputs + 1) * outputs);
      part.load(part.first, held);
      bias = part.bias();
    }
    __syncthreads();
    if (thread < outputs) {
      // Slice after slice, so that the sum is the same in every run.
      const float* sums = reinterpret_cast<const float*>(partial) + thread;
#pragma unroll 8
      for (int slice = 0; slice < slices; ++slice) {
        value += sums[slice * outputs];
      }
      activations[thread] = last || !(value < 0.f) ? value : 0.f;
    }
    __syncthreads();
  }

  if (thread < p.coordinates) {
    p.x_new[b * p.coordinates + thread] = updated_coordinate(p, b, activations, thread);
  }
}

Tensor stitch_mlp_cuda(const Tensor& x_s, const Tensor& x_d, const Tensor& weights, std::vector<int64_t> sizes,
                       std::vector<double> ratios, const std::optional<Tensor>& ratio, double multiplier) {
  const torch::stable::accelerator::DeviceGuard guard(x_d.get_device_index());
  Tensor x_new;
  const StitchMlp p = stitch_mlp_arguments(x_s, x_d, weights, sizes, ratios, ratio, multiplier, &x_new);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(p.weights) % sizeof(float4) == 0,
                  "stitch_mlp: weights must start at a multiple of 16 bytes, this view does not: clone it");
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const size_t bytes = p.weight_count * sizeof(float);
  const bool fits = starts_early() && bytes + kOwnBytes <= static_cast<size_t>(most);
  launch_early("stitch_mlp", &stitch_mlp_kernel, p.batch, kThreads, fits ? bytes : 0, current_stream(x_d), p, fits);
  return x_new;
}

// Of LivePortrait's stitching MLP.
constexpr size_t kPublishedBytes = sizeof(float) * (127 * 128 + 129 * 128 + 129 * 64 + 65 * 68);

const auto kernel = reinterpret_cast<const void*>(&stitch_mlp_kernel);
const RegisterKernel streamed({"stitch_mlp", kernel, kThreads, 0});
const RegisterKernel held({"stitch_mlp, weights in shared memory", kernel, kThreads, kPublishedBytes});

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("stitch_mlp", TORCH_BOX(&lpkernels::stitch_mlp_cuda));
}
