// conv_img on Hopper: the decoder's last convolution, pixel shuffle and sigmoid, stored as the picture.
//
//   image[c, u h + i, u w + j] = sigmoid(bias[n] + conv3x3(x, weight)[h, w, n]),  n = (c u + i) u + j
//
// Layouts: x (B, H, W, C), weight (3 u u, 3, 3, C), image uint8 (B, u H, u W, 3) or float32 (B, 3, u H, u W), u = 1
// or 2. A block owns 256 pixels and all outputs, and goes on to other pixels; the sums pass through shared memory, and
// a thread writes one pixel's square of the picture while the next tile's x comes. Bound by filling shared memory, 3
// boxes of x for 16 columns, and by reading it for the products: A is read once for each tap.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"

namespace lpkernels {

using namespace hopper;

struct ImageEpilogue : ReadsNothingAhead {
  static constexpr bool kClusters = false, kManyTiles = true, kHasValues = true;

  struct Params {
    const float* bias;
    uint8_t* bytes;  // one of the two is null
    float* floats;
    int upscale;
  };

  template <class Config>
  static constexpr size_t staged_bytes() {
    return 0;
  }

  // Not over the stages: the next tile's boxes are on their way to them.
  template <class Config>
  static constexpr size_t own_bytes() {
    return OutputValues<Config, 1>::kBytes + Staged<Config>::kBytes;
  }

  template <class Config>
  __device__ static void store_values(const Params& params, const ConvShape& shape, const ConvBlock& block, int thread,
                                      const EpilogueMemory& memory) {
    OutputValues<Config, 1>::store(memory.own, block, thread, [&](int n, float (&bias)[1]) {
      if (n < shape.outputs) {
        bias[0] = __ldg(params.bias + n);
      }
    });
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory, NothingAhead) {
    float* staged = reinterpret_cast<float*>(memory.own + OutputValues<Config, 1>::kBytes);
    sync_consumers();  // until then others may read the sums of the tile before
    Staged<Config>::store(acc, thread, staged);
    sync_consumers();
    const Pixel at = pixel_at(shape, block, thread);  // 256 threads, 256 pixels
    if (!inside(shape, at)) {
      return;
    }
    const float *row = staged + thread * Staged<Config>::kPitch,
                *bias = OutputValues<Config, 1>::of_tile(memory.own, block);
    if (params.upscale == 2) {
      write<2>(params, shape, block.b, at, row, bias);
    } else {
      write<1>(params, shape, block.b, at, row, bias);
    }
  }

  // The Up x Up pixels of the picture that pixel `at` becomes, from its sums.
  template <int Up>
  __device__ static void write(const Params& params, const ConvShape& shape, int b, const Pixel& at, const float* sums,
                               const float* bias) {
    constexpr int kOutputs = 3 * Up * Up, kQuads = (kOutputs + 3) / 4;
    float v[4 * kQuads], offset[4 * kQuads];
    load_vector(sums, v);
    load_vector(bias, offset);
    CUTLASS_PRAGMA_UNROLL
    for (int n = 0; n < kOutputs; ++n) {
      v[n] = __fdividef(1.f, 1.f + __expf(-(v[n] + offset[n])));
    }
    const int64_t height = int64_t{shape.height} * Up, width = int64_t{shape.width} * Up, x = int64_t{at.w} * Up;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Up; ++i) {
      const int64_t y = int64_t{at.h} * Up + i;
      if (params.bytes != nullptr) {
        uint8_t bytes[3 * Up];
        CUTLASS_PRAGMA_UNROLL
        for (int k = 0; k < 3 * Up; ++k) {
          bytes[k] = static_cast<uint8_t>(v[(k % 3 * Up + i) * Up + k / 3] * 255.f);
        }
        store_bytes(params.bytes + ((b * height + y) * width + x) * 3, bytes);
      } else {
        CUTLASS_PRAGMA_UNROLL
        for (int k = 0; k < 3 * Up; ++k) {
          params.floats[((int64_t{b} * 3 + k % 3) * height + y) * width + x + k / 3] = v[(k % 3 * Up + i) * Up + k / 3];
        }
      }
    }
  }

  // In pairs where they are aligned: pictures enlarged twice have rows of an even number of bytes.
  template <int Count>
  __device__ static void store_bytes(uint8_t* to, const uint8_t (&bytes)[Count]) {
    if constexpr (Count % 2 == 0) {
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < Count; k += 2) {
        *reinterpret_cast<uint16_t*>(to + k) = static_cast<uint16_t>(bytes[k] | bytes[k + 1] << 8);
      }
    } else {
      CUTLASS_PRAGMA_UNROLL
      for (int k = 0; k < Count; ++k) {
        to[k] = bytes[k];
      }
    }
  }
};

namespace {

// 8 rows of 32 pixels: a box of x serves three taps.
using ImageLoop = HaloLoop</*TileH=*/8, /*TileW=*/32, /*BlockN=*/16, /*TapsH=*/3, /*XStages=*/4, /*WeightStages=*/9>;

Tensor conv_img_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, int64_t upscale, bool as_uint8) {
  const Activation x = activation("conv_img", "x", x_tensor);
  const ConvShape shape = conv_shape("conv_img", x, weight, Grid::kSame);
  STD_TORCH_CHECK(x_tensor.dim() == 4 && (upscale == 1 || upscale == 2) && shape.outputs == 3 * upscale * upscale,
                  "conv_img: weight must have 3 * upscale^2 outputs, upscale 1 or 2; got ", shape_string(weight),
                  " and upscale ", upscale);
  check_floats("conv_img", "bias", bias, {shape.outputs});
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  const int64_t height = x.height * upscale, width = x.width * upscale;
  Tensor image = as_uint8 ? torch::stable::new_empty(x_tensor, {x.batch, height, width, 3}, ScalarType::Byte)
                          : torch::stable::new_empty(bias, {x.batch, 3, height, width});
  const ImageEpilogue::Params params{.bias = static_cast<const float*>(bias.data_ptr()),
                                     .bytes = as_uint8 ? static_cast<uint8_t*>(image.data_ptr()) : nullptr,
                                     .floats = as_uint8 ? nullptr : static_cast<float*>(image.data_ptr()),
                                     .upscale = static_cast<int>(upscale)};
  launch_conv<ImageLoop, ImageEpilogue>(x.data, x.pixel_stride, weight.data_ptr(), shape, params,
                                        current_stream(x_tensor));
  return image;
}

const RegisterKernel image_kernel(conv_entry<ImageLoop, ImageEpilogue>("conv_img<256x16, halo>"));

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("conv_img(Tensor x, Tensor weight, Tensor bias, int upscale, bool as_uint8) -> Tensor image");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("conv_img", TORCH_BOX(&lpkernels::conv_img_cuda));
}
