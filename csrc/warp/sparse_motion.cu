// sparse_motion on any CUDA device (sm_75 and later); equation in sparse_motion.h.
//
// Layouts: everything channels-last, slices of wider buffers too. A block owns kRows x 32 voxels (h, w) of one depth
// and all their channels. Weights and Gaussians along y and z are made once per block and keypoint, those along x once
// per lane; a warp takes one motion after another, its lanes neighbours along w, so that a corner's four channels are
// coalesced loads. It walks down the rows: a source row blended over (z, x) is the lower neighbour of one output row
// and the upper one of the row before, so kRows + 1 blends serve kRows rows. Values are staged in shared memory, voxels
// an odd number of words apart (lanes write to 32 banks), and leave as 16-byte stores of whole voxels.
// Bound by the output's stores (224 bytes a voxel; all that is read is small) and closely followed by the instructions
// that convert and weight corners. Other channel counts than 4 take the same path channel by channel, unstaged.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "warp/sparse_motion.h"
#include "warp/words.h"

#include <type_traits>

namespace lpkernels {
namespace {

constexpr int kColumns = 32;  // a block's voxels along w: a warp's lanes
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kMotions = 32;       // motions a block stages at a time
constexpr int kTiledChannels = 4;  // of the compressed volume

// Rows of a block: its staged values fit into the 48 KB that a kernel may have without asking.
template <class T>
constexpr int kRows = sizeof(T) == 2 ? 4 : 2;

struct Layout {
  int pitch;     // words from one staged voxel to the next
  bool vectors;  // the output takes 16-byte stores
};

// kPack neighbouring channels of a row of the volume blended over (z, x): sum of corner[2 dz + dx] * value.
template <int kPack, class T>
__device__ void blend(const T* at, int plane, int pixel, const float corner[4], float sum[kPack]) {
  using Raw = std::conditional_t<kPack == 1, T, std::conditional_t<sizeof(T) == 2, uint2, uint4>>;
  static_assert(sizeof(Raw) == kPack * sizeof(T));
  Raw raw[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T* from = at + (i >> 1) * plane + (i & 1) * pixel;
    if constexpr (kPack == 1) {
      raw[i] = *from;
    } else {
      raw[i] = __ldg(reinterpret_cast<const Raw*>(from));
    }
  }
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    sum[j] = 0.f;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      sum[j] += corner[i] * static_cast<float>(reinterpret_cast<const T*>(&raw[i])[j]);
    }
  }
}

// Stores kPack values; halves in words where their place is aligned to words.
template <int kPack, class T>
__device__ void put(T* at, const float values[kPack]) {
  if constexpr (kPack == 4 && sizeof(T) == 2) {
    if (reinterpret_cast<uintptr_t>(at) % 4 == 0) {
      reinterpret_cast<uint32_t*>(at)[0] = word_of<T>(values);
      reinterpret_cast<uint32_t*>(at)[1] = word_of<T>(values + 2);
    } else {
      at[0] = static_cast<T>(values[0]);
      *reinterpret_cast<uint32_t*>(at + 1) = word_of<T>(values + 1);
      at[3] = static_cast<T>(values[3]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      at[j] = static_cast<T>(values[j]);
    }
  }
}

// Where a lane's channels of a row go: `at + row * step`, for `rows` rows.
template <class T>
struct Destination {
  T* at;
  int step, rows;
};

// One keypoint's motion of a lane's column: heatmap and samples of kRows voxels. `rows` (places and Gaussians along y,
// the latter times those along z) and `z` are the block's.
template <int kPack, class T>
__device__ void move_column(const SparseMotionShape& shape, const AxisMotion* rows, const AxisPair& z,
                            const AxisMotion& x, const T* volume, const Destination<T>& to) {
  constexpr int R = kRows<T>;
  float corner[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    corner[i] = z.weight[i >> 1] * x.pair.weight[i & 1];
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r < to.rows) {
      to.at[r * to.step] = static_cast<T>(x.driving * rows[r].driving - x.source * rows[r].source);
    }
  }
  const int pixel = shape.compressed_pixel, line = shape.width * pixel, plane = shape.height * line;
  const int channels = kPack == 1 ? shape.channels : kTiledChannels;
#pragma unroll 1
  for (int c = 0; c < channels; c += kPack) {
    const T* column = volume + (z.first * plane + x.pair.first * pixel + c);
    float lower[kPack], upper[R][kPack];
    blend<kPack>(column + rows[0].pair.first * line, plane, pixel, corner, lower);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      blend<kPack>(column + (rows[r].pair.first + 1) * line, plane, pixel, corner, upper[r]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int moved = r == 0 ? 0 : rows[r].pair.first - rows[r - 1].pair.first;
      if (moved == 1) {
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          lower[j] = upper[r - 1][j];
        }
      } else if (moved != 0) {  // the same for all lanes; once in a volume's height, and at its edges
        blend<kPack>(column + rows[r].pair.first * line, plane, pixel, corner, lower);
      }
      float values[kPack];
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        values[j] = rows[r].pair.weight[0] * lower[j] + rows[r].pair.weight[1] * upper[r][j];
      }
      if (r < to.rows) {
        put<kPack>(to.at + r * to.step + 1 + c, values);
      }
    }
  }
}

// A staged tile to the output: lanes as 8 vectors of 4 voxels, which reads 32 banks at a time.
template <class T>
__device__ void copy_out(const SparseMotionShape& shape, const Layout& layout, const uint32_t* tile, int channels,
                         int height, int width, T* out) {
  constexpr int kVector = 16 / sizeof(T);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int vectors = layout.vectors ? channels / kVector : 0;
  for (int p = 4 * warp + lane / 8; p < kRows<T> * kColumns; p += 4 * kWarps) {
    const int h = p / kColumns, w = p % kColumns;
    if (h >= height || w >= width) {
      continue;
    }
    const uint32_t* from = tile + p * layout.pitch;
    T* to = out + (h * shape.width + w) * shape.out_pixel;
    for (int j = lane % 8; j < vectors; j += 8) {
      const uint32_t words[4] = {from[4 * j], from[4 * j + 1], from[4 * j + 2], from[4 * j + 3]};
      store_words(to + j * kVector, words);
    }
    for (int c = vectors * kVector + lane % 8; c < channels; c += 8) {
      to[c] = reinterpret_cast<const T*>(from)[c];
    }
  }
}

// kTiled: 4 channels in aligned vectors, staged; otherwise any channels, stored one by one.
template <class T, bool kTiled>
__global__ void __launch_bounds__(kThreads, kTiled ? 4 : 2)
    sparse_motion_kernel(SparseMotionShape shape, Layout layout, const T* __restrict__ compressed,
                         const T* __restrict__ background, const float* __restrict__ kp_source,
                         const float* __restrict__ kp_driving, T* __restrict__ out) {
  constexpr int R = kRows<T>;
  __shared__ AxisMotion rows[kMotions][R];
  __shared__ AxisPair depths[kMotions];
  extern __shared__ uint32_t tile[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int b = blockIdx.x / shape.depth, d = blockIdx.x - b * shape.depth;
  const int h0 = blockIdx.y * R, w0 = blockIdx.z * kColumns, w = w0 + lane;
  const int height = min(R, shape.height - h0), width = min(kColumns, shape.width - w0);  // of this block
  const int voxel = (d * shape.height + h0) * shape.width + w0;                           // its first one
  const int step = kTiled ? kTiledChannels + 1 : shape.channels + 1;                      // channels of a motion
  compressed += b * shape.compressed_batch;
  background += b * shape.background_batch + voxel * shape.background_pixel;
  kp_source += b * shape.keypoints * 3;
  kp_driving += b * shape.keypoints * 3;
  out += b * shape.out_batch + voxel * shape.out_pixel;

#pragma unroll 1
  for (int first = 0; first * step < shape.outputs; first += kMotions, out += kMotions * step) {
    const int motions = max(0, min(kMotions, shape.keypoints + 1 - first));
    const int channels = min(kMotions * step, shape.outputs - first * step);
#pragma unroll 1
    for (int i = threadIdx.x; i < motions * R; i += kThreads) {
      const int m = i / R, r = i % R, k = first + m - 1;
      if (k >= 0) {
        const AxisMotion z = axis_motion(d, shape.depth, kp_source[3 * k + 2], kp_driving[3 * k + 2]);
        AxisMotion y = axis_motion(h0 + r, shape.height, kp_source[3 * k + 1], kp_driving[3 * k + 1]);
        y.driving *= z.driving;
        y.source *= z.source;
        rows[m][r] = y;
        depths[m] = z.pair;
      }
    }
    __syncthreads();

    Destination<T> to{out + lane * shape.out_pixel, shape.width * shape.out_pixel, lane < width ? height : 0};
    if constexpr (kTiled) {
      constexpr int kPerWord = 4 / sizeof(T);
      to = {reinterpret_cast<T*>(tile + lane * layout.pitch), kColumns * layout.pitch * kPerWord, R};
    }
#pragma unroll 1
    for (int m = warp; m < motions; m += kWarps) {
      const Destination<T> own{to.at + m * step, to.step, to.rows};
      const int k = first + m - 1;
      if (k >= 0) {
        const AxisMotion x = axis_motion(w, shape.width, kp_source[3 * k], kp_driving[3 * k]);
        move_column<kTiled ? kTiledChannels : 1>(shape, rows[m], depths[m], x, compressed, own);
        continue;
      }
      for (int r = 0; r < own.rows; ++r) {  // the background, its voxels within the volume
        const T* still =
            background + (min(r, height - 1) * shape.width + min(lane, width - 1)) * shape.background_pixel;
        own.at[r * own.step] = static_cast<T>(0.f);
        for (int c = 0; c + 1 < step; ++c) {
          own.at[r * own.step + 1 + c] = still[c];
        }
      }
    }
    for (int c = motions * step + warp; c < channels; c += kWarps) {  // beyond the last motion
      for (int r = 0; r < to.rows; ++r) {
        to.at[r * to.step + c] = static_cast<T>(0.f);
      }
    }
    __syncthreads();
    if constexpr (kTiled) {
      copy_out(shape, layout, tile, channels, height, width, out);
      __syncthreads();
    }
  }
}

template <class T>
void launch(const SparseMotionShape& shape, const Tensor& compressed, const Tensor& background, const float* kp_source,
            const float* kp_driving, const Tensor& out, cudaStream_t stream) {
  const auto divisible = [](const Tensor& tensor, int64_t pixel, int64_t batch, int64_t elements) {
    return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % (elements * sizeof(T)) == 0 && pixel % elements == 0 &&
           batch % elements == 0;
  };
  const bool tiled = shape.channels == kTiledChannels &&
                     divisible(compressed, shape.compressed_pixel, shape.compressed_batch, kTiledChannels);
  constexpr int kVector = 16 / sizeof(T);
  const int staged = std::min(kMotions * (kTiledChannels + 1), shape.outputs);  // channels at a time
  Layout layout;
  layout.pitch = static_cast<int>((staged * sizeof(T) + 3) / 4) | 1;
  layout.vectors = shape.outputs % kVector == 0 && divisible(out, shape.out_pixel, shape.out_batch, kVector);
  const size_t bytes = tiled ? sizeof(uint32_t) * kRows<T> * kColumns * layout.pitch : 0;
  const int64_t columns = (shape.width + kColumns - 1) / kColumns, chunks = (shape.height + kRows<T> - 1) / kRows<T>;
  const dim3 grid(shape.batch * shape.depth, chunks, columns);
  const auto kernel = tiled ? &sparse_motion_kernel<T, true> : &sparse_motion_kernel<T, false>;
  kernel<<<grid, kThreads, bytes, stream>>>(shape, layout, static_cast<const T*>(compressed.data_ptr()),
                                            static_cast<const T*>(background.data_ptr()), kp_source, kp_driving,
                                            static_cast<T*>(out.data_ptr()));
}

void sparse_motion_cuda(const Tensor& compressed, const Tensor& background, const Tensor& kp_source,
                        const Tensor& kp_driving, const Tensor& out) {
  const SparseMotionShape shape = sparse_motion_shape(compressed, background, kp_source, kp_driving, out);
  STD_TORCH_CHECK(int64_t{shape.batch} * shape.depth < INT32_MAX, "sparse_motion: B * D must be below 2^31");
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  dispatch_float(out.scalar_type(), "sparse_motion", [&](auto element) {
    launch<decltype(element)>(shape, compressed, background, static_cast<const float*>(kp_source.data_ptr()),
                              static_cast<const float*>(kp_driving.data_ptr()), out, current_stream(out));
  });
  check_launch("sparse_motion");
}

template <class T, bool kTiled>
RegisterKernel registered(const char* name, size_t shared_bytes) {
  const auto kernel = reinterpret_cast<const void*>(&sparse_motion_kernel<T, kTiled>);
  return RegisterKernel({name, kernel, kThreads, shared_bytes});
}
using torch::headeronly::Half;
// Dynamic shared memory for LivePortrait's 112 channels.
const RegisterKernel kernels[] = {registered<Half, true>("sparse_motion<half>", 4 * kRows<Half> * kColumns * 57),
                                  registered<Half, false>("sparse_motion<half, any channels>", 0)};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("sparse_motion", TORCH_BOX(&lpkernels::sparse_motion_cuda));
}
