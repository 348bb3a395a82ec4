// convnext_stage on GPUs with clusters of blocks (sm_90, sm_100): on Hopper one kernel for all images, or for one after
// the other, where the GPU holds all of its blocks at once (convnext_stage.cuh), and many images as three kernels for
// each block of the network (batched_block.cuh); else its two halves as kernels of their own.
#include "convnext/convnext_stage.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "convnext/arguments.h"
#include "convnext/batched_block.cuh"
#include "convnext/launch.h"
#include "hopper/tensor_map.h"

namespace lpkernels::convnext {
namespace {

constexpr const char* kOp = "convnext_stage";
constexpr int kManyImages = 4;  // from here on their products fill the GPU

// Boxes of so many rows of the blocks' weights (blocks, rows, columns).
CUtensorMap boxes(const Tensor& weight, int rows_of_box) {
  const auto size = [&](int i) { return static_cast<uint64_t>(weight.size(i)); };
  const uint64_t matrix = size(1) * size(2), all = size(0) * matrix;
  return hopper::tensor_map(weight.data_ptr(), {{size(2), size(1), size(0), 1, 1},
                                                {size(2), matrix, all, all},
                                                {kBoxDepth, static_cast<uint32_t>(rows_of_box), 1, 1, 1}});
}

// Its tensors checked, everything but the answer and what lies between the halves.
ConvNextStage stage_of(const Sizes& in, const Tensor& x, const Tensor& taps, const Tensor& taps_bias,
                       const Tensor& wide_weight, const Tensor& wide_bias, const Tensor& gamma, const Tensor& weight,
                       const Tensor& bias) {
  constexpr auto kHalf = ScalarType::Half, kFloat = ScalarType::Float;
  const int64_t channels = in.channels, blocks = taps.size(0), n = wide_weight.size(1);
  STD_TORCH_CHECK(blocks > 0 && blocks < (1 << 15), kOp, ": needs the weights of at least one block; got ", blocks);
  STD_TORCH_CHECK(channels % 8 == 0 && channels <= WideDepthwise::Product::kDepth && n % 8 == 0 && n <= kMostDepth, kOp,
                  ": made for channels in multiples of 8, at most ", WideDepthwise::Product::kDepth, " and ",
                  kMostDepth, " between the halves; got ", channels, " and ", n);
  ConvNextStage p{};
  p.blocks = static_cast<int>(blocks);
  p.batch = in.batch;
  DepthwiseLinear& expand = p.expand;
  expand.x = checked<__half>(kOp, "x", x, kHalf, {in.batch, in.height, in.width, channels});
  expand.taps = checked<float>(kOp, "taps", taps, kFloat, {blocks, kTaps, kTaps, channels});
  expand.taps_bias = checked<float>(kOp, "taps_bias", taps_bias, kFloat, {blocks, channels});
  expand.weight = checked<__half>(kOp, "wide_weight", wide_weight, kHalf, {blocks, n, channels});
  expand.bias = checked<float>(kOp, "wide_bias", wide_bias, kFloat, {blocks, n});
  expand.height = in.height;
  expand.width = in.width;
  expand.channels = in.channels;
  expand.outputs = static_cast<int>(n);
  GrnLinear& project = p.project;
  project.gamma = checked<float>(kOp, "gamma", gamma, kFloat, {blocks, n});
  project.weight = checked<__half>(kOp, "weight", weight, kHalf, {blocks, channels, n});
  project.bias = checked<float>(kOp, "bias", bias, kFloat, {blocks, channels});
  project.residual = expand.x;
  project.pixels = in.height * in.width;
  project.depth = static_cast<int>(n);
  project.outputs = in.channels;
  return p;
}

// As one kernel for `p.batch` images at a time, if the GPU holds it; y and h of all images lie in p.
bool run_as_one(ConvNextStage p, int batch, const Tensor& wide_weight, const Tensor& weight, const Tensor& like,
                cudaStream_t stream) {
  bool held = false;
  with_stage(p, [&](auto variant, int grid, int shared_bytes) {
    using V = decltype(variant);
    held = holds_all(V::kKernel, kThreads, shared_bytes, p.cluster, grid);
    if (!held) {
      return;
    }
    const Tensor squares = torch::stable::new_empty(like, {p.batch, p.expand.tiles, p.expand.outputs});
    p.project.squares = p.expand.squares = static_cast<float*>(squares.data_ptr());
    p.expand_weights = boxes(wide_weight, V::Expand::Product::kColumns);
    p.project_weights = boxes(weight, V::Project::Product::kColumns);
    const int64_t image = int64_t{p.batch} * p.project.pixels * p.project.outputs;
    for (int first = 0; first < batch; first += p.batch) {
      launch_clusters</*Cooperative=*/true>(kOp, V::kKernel, dim3(grid), kThreads, shared_bytes, p.cluster, stream, p);
      p.expand.x += image;
      p.project.residual += image;
      p.project.y += image;
    }
  });
  return held;
}

// Block after block of many images; y and h lie in p. Of two buffers in turn, of which the last block has y, each takes
// a block's normed pixels and then its answer.
void run_batched(ConvNextStage p, const Tensor& like_x, const Tensor& like_bias, cudaStream_t stream) {
  const int wide = p.expand.outputs;
  const Tensor other = torch::stable::new_empty(like_x, {p.batch, p.expand.height, p.expand.width, p.expand.channels});
  const Tensor squares = torch::stable::new_empty(like_bias, {p.batch, tiles_of_many_images(p.expand, p.batch), wide});
  p.expand.squares = static_cast<float*>(squares.data_ptr());
  __half* const buffers[] = {p.project.y, static_cast<__half*>(other.data_ptr())};
  const __half* x = p.expand.x;
  for (int i = 0; i < p.blocks; ++i) {
    DepthwiseLinear expand = p.expand_of(i);
    GrnLinear project = p.project_of(i);
    __half* const y = buffers[(p.blocks - 1 - i) % 2];
    expand.x = project.residual = x;
    project.y = y;
    launch_batched_block(kOp, expand, project, y, p.batch, stream);
    x = y;
  }
}

Tensor convnext_stage_cuda(const Tensor& x, const Tensor& taps, const Tensor& taps_bias, const Tensor& wide_weight,
                           const Tensor& wide_bias, const Tensor& gamma, const Tensor& weight, const Tensor& bias) {
  const Sizes in(kOp, x);
  ConvNextStage p = stage_of(in, x, taps, taps_bias, wide_weight, wide_bias, gamma, weight, bias);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const cudaStream_t stream = current_stream(x);
  const int64_t n = p.expand.outputs;
  const Tensor y = torch::stable::new_empty(x, {in.batch, in.height, in.width, in.channels});
  const Tensor h = torch::stable::new_empty(x, {in.batch, in.height, in.width, n});
  p.project.x = p.expand.h = static_cast<__half*>(h.data_ptr());
  p.project.y = static_cast<__half*>(y.data_ptr());
  if (in.batch >= kManyImages && takes_many_images(in.channels, p.expand.outputs)) {
    run_batched(p, x, bias, stream);
    return y;
  }
  for (p.batch = in.batch; p.batch > 0; p.batch = p.batch > 1 ? 1 : 0) {  // all at once, then one by one
    if (hopper::runs_here() && run_as_one(p, in.batch, wide_weight, weight, bias, stream)) {
      return y;
    }
  }
  const int tiles = p.project.rows = p.expand.tiles = tiles_of(p.expand, patch_height(p.expand));
  STD_TORCH_CHECK(tiles < (1 << 24), kOp, ": x is too large: ", shape_string(x));
  const Tensor squares = torch::stable::new_empty(bias, {in.batch, tiles, n});
  p.project.squares = p.expand.squares = static_cast<float*>(squares.data_ptr());
  for (int i = 0; i < p.blocks; ++i) {
    launch_depthwise_linear(kOp, p.expand_of(i), in.batch, stream);
    launch_grn_linear(kOp, p.project_of(i), in.batch, stream);
  }
  return y;
}

template <class V>
RegisterKernel registered(const char* name, int shared_bytes) {
  return RegisterKernel({name, reinterpret_cast<const void*>(V::kKernel), kThreads, static_cast<size_t>(shared_bytes)});
}

// Shared memory for the published stage of so many channels.
int published_bytes(int side, int channels) {
  ConvNextStage p{};
  p.blocks = p.batch = 1;
  p.expand.height = p.expand.width = side;
  p.project.outputs = p.expand.channels = channels;
  p.project.depth = p.expand.outputs = 4 * channels;
  p.project.pixels = side * side;
  int bytes = 0;
  with_stage(p, [&](auto, int, int shared_bytes) { bytes = shared_bytes; });
  return bytes;
}
const RegisterKernel kernels[] = {registered<Stage96>("convnext_stage<96>", published_bytes(64, 96)),
                                  registered<Stage192>("convnext_stage<192>", published_bytes(32, 192)),
                                  registered<Stage384>("convnext_stage<384>", published_bytes(16, 384)),
                                  registered<Stage768>("convnext_stage<768>", published_bytes(8, 768))};

template <class Tile>
RegisterKernel registered(const char* name, int side, int channels) {
  DepthwiseNorm p{.x = nullptr,
                  .taps = nullptr,
                  .taps_bias = nullptr,
                  .a = nullptr,
                  .height = side,
                  .width = side,
                  .channels = channels};
  Tile::lay_out(p);
  return RegisterKernel(
      {name, reinterpret_cast<const void*>(&depthwise_norm_kernel<Tile>), Tile::kThreads, Tile::shared_bytes(p)});
}
const RegisterKernel kernels_of_many_images[] = {
    registered<DepthwiseNormTile<8, 1>>("depthwise_norm<96>", 64, 96),
    registered<DepthwiseNormTile<8, 2>>("depthwise_norm<192>", 32, 192),
    registered<DepthwiseNormTile<8, 3>>("depthwise_norm<384>", 16, 384),
    registered<DepthwiseNormTile<4, 6>>("depthwise_norm<768>", 8, 768),
    RegisterKernel(hopper::conv_entry<Expand128, ExpandEpilogue>("linear_gelu<128x128>")),
    RegisterKernel(hopper::conv_entry<Expand192, ExpandEpilogue>("linear_gelu<128x192>")),
    RegisterKernel(hopper::conv_entry<Project96, ProjectEpilogue>("grn_linear<128x96>"))};

}  // namespace
}  // namespace lpkernels::convnext

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "convnext_stage(Tensor x, Tensor taps, Tensor taps_bias, Tensor wide_weight, Tensor wide_bias, Tensor gamma, "
      "Tensor weight, Tensor bias) -> Tensor y");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("convnext_stage", TORCH_BOX(&lpkernels::convnext::convnext_stage_cuda));
}
