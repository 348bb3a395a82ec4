// conv_pool on Hopper: y = the mean over 2x2 pixels of relu(conv(x, weight) + bias), a down block of the hourglass.
//
// Layouts: x (B, D, H, W, C), y (B, D, H/2, W/2, O), both perhaps slices of a wider buffer; weight (O, 3, 3, 3, C). A
// block owns 8 pixels in w: then rows r and r + 8 of its tile are neighbours in h and lie in one thread, those in w in
// threads next to each other, and pooling needs registers and one shuffle. Small maps share a tile's sum among the
// blocks of a cluster, perhaps in tiles of 2 or 4 pixels in w, whose neighbours in h lie in other threads too. Bound by
// the tensor cores, the smallest maps by reading the weight.
#include "conv/conv_pool.cuh"

#include "common/kernel_table.h"

namespace lpkernels {
namespace {

// Few outputs: 32 rows of 8 pixels read their halo twice less often than single boxes would.
using Narrow = HaloLoop</*TileH=*/32, /*TileW=*/8, /*BlockN=*/64, /*TapsH=*/3, /*XStages=*/3, /*WeightStages=*/9>;
using Square = BoxLoop<ConvConfig</*BlockM=*/128, /*BlockN=*/128, /*Stages=*/6, /*Channels=*/0, /*Clusters=*/true>>;

// A large map has tiles enough; the blocks of a small one share sums, and its whole width in a tile wastes less of it.
void launch_square(const Activation& x, const Tensor& weight, ConvShape shape, const PoolEpilogue::Params& params,
                   cudaStream_t stream) {
  constexpr int kTile = Square::Config::BlockM;
  shape.tile_w = std::min(8, std::max(2, 1 << log2_of(shape.width)));
  shape.tile_h = std::min(kTile / shape.tile_w, std::max(2, 1 << log2_of(shape.height)));
  shape.tile_d = kTile / shape.tile_w / shape.tile_h;
  complete(shape, kTile);
  shape.split = split_for<Square, PoolEpilogue>(shape);
  if (shape.split == 1 && shape.tile_w != 8) {  // pooled without shuffles in h
    shape.tile_w = 8;
    shape.tile_h = 2;
    shape.tile_d = kTile / 16;
    complete(shape, kTile);
  }
  shape.permuted = true;
  launch_conv<Square, PoolEpilogue>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
}

void launch_narrow(const Activation& x, const Tensor& weight, ConvShape shape, const PoolEpilogue::Params& params,
                   cudaStream_t stream) {
  shape.permuted = true;
  launch_conv<Narrow, PoolEpilogue>(x.data, x.pixel_stride, weight.data_ptr(), shape, params, stream);
}

void conv_pool_cuda(const Tensor& x_tensor, const Tensor& weight, const Tensor& bias, const Tensor& out_tensor) {
  const Activation x = activation("conv_pool", "x", x_tensor), out = activation("conv_pool", "out", out_tensor);
  const bool winograd = is_winograd(weight);
  const ConvShape shape =
      winograd ? winograd_shape("conv_pool", x, weight) : conv_shape("conv_pool", x, weight, Grid::kSame);
  STD_TORCH_CHECK(x_tensor.dim() == 5 && x.height % 2 == 0 && x.width % 2 == 0 && out.batch == x.batch &&
                      out.depth == x.depth && 2 * out.height == x.height && 2 * out.width == x.width &&
                      out.channels == shape.outputs && shape.outputs % 32 == 0,
                  "conv_pool: out must be (B, D, H/2, W/2, O) for x (B, D, H, W, C), O a multiple of 32; got ",
                  shape_string(out_tensor), " and ", shape_string(x_tensor));
  check_floats("conv_pool", "bias", bias, {shape.outputs});
  const PoolEpilogue::Params params{static_cast<const float*>(bias.data_ptr()), static_cast<__half*>(out.data),
                                    out.pixel_stride};
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  const cudaStream_t stream = current_stream(x_tensor);
  if (winograd) {
    launch_conv_pool_winograd(x, weight, shape, params, stream);
  } else if (shape.outputs <= 64 && shape.taps_h == Narrow::kTapsH && x.width >= 16) {
    launch_narrow(x, weight, shape, params, stream);
  } else {
    launch_square(x, weight, shape, params, stream);
  }
}

const RegisterKernel kernels[] = {RegisterKernel(conv_entry<Narrow, PoolEpilogue>("conv_pool<256x64, halo>")),
                                  RegisterKernel(conv_entry<Square, PoolEpilogue>("conv_pool<128x128>"))};

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def("conv_pool(Tensor x, Tensor weight, Tensor bias, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("conv_pool", TORCH_BOX(&lpkernels::conv_pool_cuda));
}
