// conv_img on Hopper: the decoder's last convolution, pixel shuffle and sigmoid, stored as the picture.
//
//   image[c, u h + i, u w + j] = sigmoid(bias[n] + conv3x3(x, weight)[h, w, n]),  n = (c u + i) u + j
//
// Layouts: x (B, H, W, C), weight (3 u u, 3, 3, C), image uint8 (B, u H, u W, 3) or float32 (B, 3, u H, u W), u = 1
// or 2. A block owns 256 pixels and all outputs; they pass through shared memory, and a thread writes one pixel's
// square of the picture. Bound by filling shared memory: 3 boxes of x for 16 columns.
#include "common/cuda.h"
#include "common/kernel_table.h"
#include "hopper/activation.h"
#include "hopper/epilogue.cuh"

namespace lpkernels {
namespace {

using namespace hopper;

// 8 rows of 32 pixels: a box of x serves three taps.
using ImageLoop = HaloLoop</*TileH=*/8, /*TileW=*/32, /*BlockN=*/16, /*TapsH=*/3, /*XStages=*/3, /*WeightStages=*/9>;

struct ImageEpilogue : ReadsNothingAhead {
  static constexpr bool kClusters = false, kManyTiles = false;

  struct Params {
    const float* bias;
    uint8_t* bytes;  // one of the two is null
    float* floats;
    int upscale;
  };

  template <class Config>
  static constexpr size_t staged_bytes() {
    return Staged<Config>::kBytes;
  }

  template <class Config>
  static constexpr size_t own_bytes() {
    return 0;
  }

  template <class Config, class Accumulator>
  __device__ static void run(const Params& params, const ConvShape& shape, const ConvBlock& block, Accumulator& acc,
                             int thread, const EpilogueMemory& memory, NothingAhead) {
    float* staged = reinterpret_cast<float*>(memory.stages);
    sync_consumers();  // until then the other warpgroup may read the stages that the sums overwrite
    Staged<Config>::store(acc, thread, staged);
    sync_consumers();
    const Pixel at = pixel_at(shape, block, thread);  // 256 threads, 256 pixels
    if (!inside(shape, at)) {
      return;
    }
    const float* row = staged + thread * Staged<Config>::kPitch;
    const int u = params.upscale;
    const int64_t height = int64_t{shape.height} * u, width = int64_t{shape.width} * u;
    for (int i = 0; i < u; ++i) {
      for (int j = 0; j < u; ++j) {
        const int64_t y = int64_t{at.h} * u + i, x = int64_t{at.w} * u + j;
        CUTLASS_PRAGMA_UNROLL
        for (int c = 0; c < 3; ++c) {
          const int n = (c * u + i) * u + j;
          const float value = 1.f / (1.f + __expf(-(row[n] + __ldg(params.bias + n))));
          if (params.bytes != nullptr) {
            params.bytes[((block.b * height + y) * width + x) * 3 + c] = static_cast<uint8_t>(value * 255.f);
          } else {
            params.floats[((int64_t{block.b} * 3 + c) * height + y) * width + x] = value;
          }
        }
      }
    }
  }
};

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
  check_launch("conv_img");
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
