// sparse_motion on any CUDA device (sm_75 and later); equation in sparse_motion.h.
//
// Layouts: everything channels-last, slices of wider buffers too. A block owns R x 32 voxels (h, w) of one depth and
// all their channels. A warp takes one motion, its lanes neighbours along w, so that a corner's four channels are
// coalesced loads of 8 bytes; weights and Gaussians along y and z its lanes work out for each other. It walks down the
// rows: a source row blended over (z, x) is the lower neighbour of one output row and the upper one of the row before,
// so R + 1 blends serve R rows. A round of 24 motions, all of LivePortrait's 22, is staged in shared memory, voxels an
// odd number of words apart (lanes write to 32 banks), and leaves as 16-byte stores. Bound by instructions, some 60 for
// 32 voxels of a motion, and by the L1 (12 of its cycles to read the corners); the output's stores (224 bytes a voxel)
// come next. Anything but 4 dense channels is made value by value, unstaged.
#include "common/cuda.h"
#include "common/dependent_launch.cuh"
#include "common/kernel_table.h"
#include "warp/sparse_motion.h"
#include "warp/sparse_motion_tile.h"

namespace lpkernels {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kBlocks = 1;  // of a multiprocessor, which has 1024 threads
#else
constexpr int kBlocks = 2;
#endif

// For 4 channels in dense aligned voxels; `wide`: the output takes 16-byte stores; columns: blocks along w.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sparse_motion_tiled(SparseMotionShape shape, bool wide, int columns, const T* __restrict__ compressed,
                        const T* __restrict__ background, const float* __restrict__ kp_source,
                        const float* __restrict__ kp_driving, T* __restrict__ out) {
  constexpr int R = kRows<T>, kVoxelStep = kPitchWords<T> * 4 / sizeof(T);
  extern __shared__ float4 staging[];
  uint32_t* buffer = reinterpret_cast<uint32_t*>(staging + kWarps * R);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int b = blockIdx.x / shape.depth, d = blockIdx.x - b * shape.depth;
  const int h0 = blockIdx.y * R, w0 = blockIdx.z % columns * kColumns, first = blockIdx.z / columns * kWarps;
  const int height = min(R, shape.height - h0), width = min(kColumns, shape.width - w0);  // of this block
  const int voxel = (d * shape.height + h0) * shape.width + w0;                           // its first one
  T* to = reinterpret_cast<T*>(buffer) + lane * kVoxelStep + warp * kStep;
  const int m = first + warp;
  let_next_kernel_start();
  wait_for_kernel_before();
  if (m > 0 && m <= shape.keypoints) {
    const int64_t at = (int64_t{b} * shape.keypoints + m - 1) * 3;
    move_columns(shape, after_the_wait(kp_source + at), after_the_wait(kp_driving + at), d, h0, w0 + lane,
                 after_the_wait(compressed + b * shape.compressed_batch), warp % 2 != 0,
                 reinterpret_cast<MotionRow*>(staging + warp * R), to);
  } else if (m == 0) {
    const T* from = background + b * shape.background_batch + voxel * shape.background_pixel;
    put_background(shape, after_the_wait(from), height, width, to);
  } else if (m * kStep < shape.outputs) {  // channels beyond the last motion
#pragma unroll 1
    for (int i = 0; i < R * kStep; ++i) {
      to[i / kStep * kColumns * kVoxelStep + i % kStep] = static_cast<T>(0.f);
    }
  }
  __syncthreads();
  copy_out(shape, buffer, wide, min(kRound, shape.outputs - first * kStep), height, width,
           out + b * shape.out_batch + voxel * shape.out_pixel + first * kStep);
}

constexpr int kPlainRows = 8, kPlainThreads = kPlainRows * kColumns;

// For any channels and strides: a thread owns one voxel and all its motions.
template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    sparse_motion_plain(SparseMotionShape shape, const T* __restrict__ compressed, const T* __restrict__ background,
                        const float* __restrict__ kp_source, const float* __restrict__ kp_driving,
                        T* __restrict__ out) {
  const int w = blockIdx.z * kColumns + threadIdx.x % 32, h = blockIdx.y * kPlainRows + threadIdx.x / 32;
  const int b = blockIdx.x / shape.depth, d = blockIdx.x - b * shape.depth;
  if (w >= shape.width || h >= shape.height) {
    return;
  }
  const int voxel = (d * shape.height + h) * shape.width + w, step = shape.channels + 1;
  let_next_kernel_start();
  wait_for_kernel_before();
  compressed = after_the_wait(compressed), background = after_the_wait(background);
  kp_source = after_the_wait(kp_source), kp_driving = after_the_wait(kp_driving);
  out += b * shape.out_batch + voxel * shape.out_pixel;
  background += b * shape.background_batch + voxel * shape.background_pixel;
  out[0] = static_cast<T>(0.f);
  for (int c = 0; c < shape.channels; ++c) {
    out[1 + c] = background[c];
  }
  kp_source += int64_t{b} * shape.keypoints * 3;
  kp_driving += int64_t{b} * shape.keypoints * 3;
  for (int k = 0; k < shape.keypoints; ++k) {
    const float *source = kp_source + 3 * k, *driving = kp_driving + 3 * k;
    move_voxel(axis_motion(d, shape.depth, shape.inverse_depth, source[2], driving[2]),
               axis_motion(h, shape.height, shape.inverse_height, source[1], driving[1]),
               axis_motion(w, shape.width, shape.inverse_width, source[0], driving[0]), shape,
               compressed + b * shape.compressed_batch, out + (k + 1) * step);
  }
  for (int c = (shape.keypoints + 1) * step; c < shape.outputs; ++c) {
    out[c] = static_cast<T>(0.f);
  }
}

template <class T>
void launch(const SparseMotionShape& shape, const Tensor& compressed, const Tensor& background, const float* kp_source,
            const float* kp_driving, const Tensor& out, cudaStream_t stream) {
  const auto aligned = [](const Tensor& tensor, int64_t pixel, int64_t batch, int64_t elements) {
    return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % (elements * sizeof(T)) == 0 && pixel % elements == 0 &&
           batch % elements == 0;
  };
  constexpr int kVector = 16 / sizeof(T);
  const bool tiled = shape.channels == kChannels && shape.compressed_pixel == kChannels &&
                     aligned(compressed, shape.compressed_pixel, shape.compressed_batch, kChannels);
  const bool wide = shape.outputs % kVector == 0 && aligned(out, shape.out_pixel, shape.out_batch, kVector);
  const int rows = tiled ? kRows<T> : kPlainRows;
  const int columns = (shape.width + kColumns - 1) / kColumns, rounds = (shape.outputs + kRound - 1) / kRound;
  const dim3 grid(shape.batch * shape.depth, (shape.height + rows - 1) / rows, columns * (tiled ? rounds : 1));
  const auto* volume = static_cast<const T*>(compressed.data_ptr());
  const auto* still = static_cast<const T*>(background.data_ptr());
  auto* to = static_cast<T*>(out.data_ptr());
  if (tiled) {
    launch_early("sparse_motion", &sparse_motion_tiled<T>, grid, kThreads, kSharedBytes<T>, stream, shape, wide,
                 columns, volume, still, kp_source, kp_driving, to);
  } else {
    launch_early("sparse_motion", &sparse_motion_plain<T>, grid, kPlainThreads, 0, stream, shape, volume, still,
                 kp_source, kp_driving, to);
  }
}

void sparse_motion_cuda(const Tensor& compressed, const Tensor& background, const Tensor& kp_source,
                        const Tensor& kp_driving, const Tensor& out) {
  const SparseMotionShape shape = sparse_motion_shape(compressed, background, kp_source, kp_driving, out);
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  dispatch_float(out.scalar_type(), "sparse_motion", [&](auto element) {
    launch<decltype(element)>(shape, compressed, background, static_cast<const float*>(kp_source.data_ptr()),
                              static_cast<const float*>(kp_driving.data_ptr()), out, current_stream(out));
  });
}

using torch::headeronly::Half;
const RegisterKernel tiled({"sparse_motion<half>", reinterpret_cast<const void*>(&sparse_motion_tiled<Half>), kThreads,
                            kSharedBytes<Half>});
const RegisterKernel plain({"sparse_motion<half, any layout>",
                            reinterpret_cast<const void*>(&sparse_motion_plain<Half>), kPlainThreads, 0});

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("sparse_motion", TORCH_BOX(&lpkernels::sparse_motion_cuda));
}
