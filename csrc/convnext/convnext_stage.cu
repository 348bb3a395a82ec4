// convnext_stage on GPUs with clusters of blocks (sm_90, sm_100): on Hopper one kernel for all images, or for one after
// the other, where the GPU holds all of its blocks at once (convnext_stage.cuh), and many images as three kernels for
// each block of the network (batched_block.cuh); else its two halves as kernels of their own. The step before is in the
// one kernel, or a kernel of its own.
#include "convnext/convnext_stage.cuh"

#include "common/cuda.h"
#include "common/kernel_table.h"
#include "convnext/arguments.h"
#include "convnext/batched_block.cuh"
#include "convnext/depthwise_linear.cuh"
#include "convnext/grn_linear.cuh"
#include "convnext/launch.h"
#include "hopper/tensor_map.h"

namespace lpkernels::convnext {
namespace {

constexpr const char* kOp = "convnext_stage";
constexpr int kManyImages = 4;  // from here on their products fill the GPU

// Boxes of so many rows of matrices that lie one behind the other.
CUtensorMap boxes(const Tensor& weight, int64_t matrices, int64_t rows, int rows_of_box) {
  const auto count = static_cast<uint64_t>(matrices), height = static_cast<uint64_t>(rows);
  const auto all = static_cast<uint64_t>(weight.numel()), matrix = all / count;
  return hopper::tensor_map(weight.data_ptr(), {{matrix / height, height, count, 1, 1},
                                                {matrix / height, matrix, all, all},
                                                {kBoxDepth, static_cast<uint32_t>(rows_of_box), 1, 1, 1}});
}

// Boxes of all taps of so many channels (blocks, 7, 7, channels), each float as two halves.
CUtensorMap boxes_of_taps(const Tensor& taps, int channels_of_box) {
  const auto row = 2 * static_cast<uint64_t>(taps.size(3)), matrix = row * kTaps * kTaps;
  const uint64_t all = static_cast<uint64_t>(taps.size(0)) * matrix;
  return hopper::tensor_map(taps.data_ptr(),
                            {{row, kTaps * kTaps, static_cast<uint64_t>(taps.size(0)), 1, 1},
                             {row, matrix, all, all},
                             {2 * static_cast<uint32_t>(channels_of_box), kTaps * kTaps, 1, 1, 1}},
                            CU_TENSOR_MAP_SWIZZLE_NONE);
}

// A stage's tensors, checked, and how its block-wise halves take them.
struct Stage {
  const Tensor &x, &taps, &taps_bias, &wide_weight, &wide_bias, &gamma, &weight, &bias;
  const Tensor* step_weight;  // of the step before the first block, or null
  Sizes in;                   // of the first block's x
  int64_t x_of_image;         // numbers
  int blocks, wide;
  ConvNextStage whole{};  // everything but the mail

  Stage(const Tensor& x, const Tensor& taps, const Tensor& taps_bias, const Tensor& wide_weight,
        const Tensor& wide_bias, const Tensor& gamma, const Tensor& weight, const Tensor& bias,
        const Tensor* step_weight = nullptr, const Tensor* step_bias = nullptr)
      : x(x),
        taps(taps),
        taps_bias(taps_bias),
        wide_weight(wide_weight),
        wide_bias(wide_bias),
        gamma(gamma),
        weight(weight),
        bias(bias),
        step_weight(step_weight),
        in(kOp, x),
        x_of_image(int64_t{in.height} * in.width * in.channels) {
    if (step_weight != nullptr) {
      STD_TORCH_CHECK(in.height > 1 && in.width > 1 && in.channels % 8 == 0, kOp,
                      ": x of a step must be at least 2 pixels high and wide and have channels in multiples of 8; got ",
                      shape_string(x));
      const int64_t n = taps.size(3);
      whole.x = checked<__half>(kOp, "x", x, ScalarType::Half, {in.batch, in.height, in.width, in.channels});
      checked<__half>(kOp, "step_weight", *step_weight, ScalarType::Half, {n, 2, 2, in.channels});
      whole.step = {checked<float>(kOp, "step_bias", *step_bias, ScalarType::Float, {n}), in.height, in.width,
                    in.channels, 0};
      in.height /= 2;
      in.width /= 2;
      in.channels = static_cast<int>(n);
    }
    constexpr auto kHalf = ScalarType::Half, kFloat = ScalarType::Float;
    const int64_t channels = in.channels, count = taps.size(0), n = wide_weight.size(1);
    STD_TORCH_CHECK(count > 0 && count < (1 << 15), kOp, ": needs the weights of at least one block; got ", count);
    STD_TORCH_CHECK(channels % 8 == 0 && channels <= WideDepthwise::Product::kDepth && n % 8 == 0 && n <= kMostDepth,
                    kOp, ": made for channels in multiples of 8, at most ", WideDepthwise::Product::kDepth, " and ",
                    kMostDepth, " between the halves; got ", channels, " and ", n);
    blocks = whole.blocks = static_cast<int>(count);
    wide = whole.wide = static_cast<int>(n);
    if (step_weight == nullptr) {
      whole.x = checked<__half>(kOp, "x", x, kHalf, {in.batch, in.height, in.width, channels});
    }
    whole.taps = checked<float>(kOp, "taps", taps, kFloat, {count, kTaps, kTaps, channels});
    whole.taps_bias = checked<float>(kOp, "taps_bias", taps_bias, kFloat, {count, channels});
    checked<__half>(kOp, "wide_weight", wide_weight, kHalf, {count, n, channels});
    whole.wide_bias = checked<float>(kOp, "wide_bias", wide_bias, kFloat, {count, n});
    whole.gamma = checked<float>(kOp, "gamma", gamma, kFloat, {count, n});
    checked<__half>(kOp, "weight", weight, kHalf, {count, channels, n});
    whole.bias = checked<float>(kOp, "bias", bias, kFloat, {count, channels});
    whole.batch = in.batch;
    whole.height = in.height;
    whole.width = in.width;
    whole.channels = in.channels;
  }

  // The halves of a block, everything but what they write and read of each other.
  DepthwiseLinear expand_of(int block) const {
    return {.x = whole.x,
            .taps = whole.taps + int64_t{block} * kTaps * kTaps * in.channels,
            .taps_bias = whole.taps_bias + int64_t{block} * in.channels,
            .weight = static_cast<const __half*>(wide_weight.data_ptr()) + int64_t{block} * wide * in.channels,
            .bias = whole.wide_bias + int64_t{block} * wide,
            .h = nullptr,
            .squares = nullptr,
            .height = in.height,
            .width = in.width,
            .channels = in.channels,
            .outputs = wide};
  }
  GrnLinear project_of(int block) const {
    return {.x = nullptr,
            .squares = nullptr,
            .gamma = whole.gamma + int64_t{block} * wide,
            .weight = static_cast<const __half*>(weight.data_ptr()) + int64_t{block} * wide * in.channels,
            .bias = whole.bias + int64_t{block} * in.channels,
            .residual = whole.x,
            .y = nullptr,
            .pixels = in.height * in.width,
            .depth = wide,
            .outputs = in.channels,
            .rows = 0,
            .splits = 1,
            .tiles = 1};
  }
};

// As one kernel for so many images at a time, if the GPU holds it.
bool run_as_one(const Stage& stage, int images, __half* y, cudaStream_t stream) {
  ConvNextStage p = stage.whole;
  p.batch = images;
  p.y = y;
  bool held = false;
  with_stage(p, [&](auto variant, int64_t grid) {
    using V = decltype(variant);
    held = holds_all(V::kKernel, kThreads, sizeof(typename V::Memory), p.splits, grid) &&
           (stage.step_weight == nullptr || V::Step::takes(p.step.channels, p.splits));
    if (!held) {
      return;
    }
    const Tensor mail = torch::stable::new_empty(stage.bias, {mail_bytes(p) / static_cast<int64_t>(sizeof(float))});
    p.mail.first = static_cast<unsigned char*>(mail.data_ptr());
    constexpr int kColumns = V::Project::Product::kColumns;
    p.expand_weights = boxes(stage.wide_weight, p.blocks, p.wide, V::Expand::Product::kColumns);
    p.project_weights = boxes(stage.weight, p.blocks, p.channels, kColumns);
    p.taps_boxes = boxes_of_taps(stage.taps, V::Expand::kConvolved);
    if (stage.step_weight != nullptr) {
      p.step_weights = boxes(*stage.step_weight, 1, p.channels, kColumns);
      p.step.taps_of_piece = V::Project::Product::kDepth / p.step.channels;
    }
    const int64_t pixels = int64_t{images} * p.height * p.width * p.channels;
    for (int first = 0; first < stage.in.batch; first += images) {
      launch_clusters</*Cooperative=*/true>(kOp, V::kKernel, dim3(static_cast<unsigned>(grid)), kThreads,
                                            sizeof(typename V::Memory), p.splits, stream, p);
      p.x += images * stage.x_of_image;
      p.y += pixels;
    }
  });
  return held;
}

// Block after block of many images, of which y and h lie one behind the other. Of two buffers in turn, of which the
// last block has y, each takes a block's normed pixels and then its answer.
void run_batched(const Stage& stage, __half* h, __half* y, cudaStream_t stream) {
  const Sizes& in = stage.in;
  const Tensor other = torch::stable::new_empty(stage.x, {in.batch, in.height, in.width, in.channels});
  const int tiles = tiles_of_many_images(stage.expand_of(0), in.batch);
  const Tensor squares = torch::stable::new_empty(stage.bias, {in.batch, tiles, stage.wide});
  __half* buffers[2] = {y, static_cast<__half*>(other.data_ptr())};
  const __half* x = stage.whole.x;
  for (int i = 0; i < stage.blocks; ++i) {
    DepthwiseLinear expand = stage.expand_of(i);
    GrnLinear project = stage.project_of(i);
    __half* const answer = buffers[(stage.blocks - 1 - i) % 2];
    project.x = expand.h = h;
    project.squares = expand.squares = static_cast<float*>(squares.data_ptr());
    expand.x = project.residual = x;
    project.y = answer;
    launch_batched_block(kOp, expand, project, answer, in.batch, stream);
    x = answer;
  }
}

// Block after block, each as two kernels.
void run_halves(const Stage& stage, __half* h, __half* y, cudaStream_t stream) {
  const Sizes& in = stage.in;
  const DepthwiseLinear first = stage.expand_of(0);
  const int tiles = tiles_of(first, patch_height(first));
  STD_TORCH_CHECK(tiles < (1 << 24), kOp, ": x is too large: ", shape_string(stage.x));
  const Tensor squares = torch::stable::new_empty(stage.bias, {in.batch, tiles, stage.wide});
  for (int i = 0; i < stage.blocks; ++i) {
    DepthwiseLinear expand = stage.expand_of(i);
    GrnLinear project = stage.project_of(i);
    project.x = expand.h = h;
    project.squares = expand.squares = static_cast<float*>(squares.data_ptr());
    project.rows = expand.tiles = tiles;
    expand.x = project.residual = i == 0 ? stage.whole.x : y;
    project.y = y;
    launch_depthwise_linear(kOp, expand, in.batch, stream);
    launch_grn_linear(kOp, project, in.batch, stream);
  }
}

// As one kernel: all images at once, else one by one.
bool run_on_hopper(const Stage& stage, __half* y, cudaStream_t stream) {
  const int images = stage.in.batch;
  return hopper::runs_here() &&
         (run_as_one(stage, images, y, stream) || (images > 1 && run_as_one(stage, 1, y, stream)));
}

Tensor convnext_stage_cuda(const Tensor& x, const Tensor& taps, const Tensor& taps_bias, const Tensor& wide_weight,
                           const Tensor& wide_bias, const Tensor& gamma, const Tensor& weight, const Tensor& bias,
                           const std::optional<Tensor>& step_weight, const std::optional<Tensor>& step_bias) {
  STD_TORCH_CHECK(step_weight.has_value() == step_bias.has_value(), kOp, ": a step needs a weight and a bias");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const cudaStream_t stream = current_stream(x);
  const Tensor* const step = step_weight ? &*step_weight : nullptr;
  const Stage whole(x, taps, taps_bias, wide_weight, wide_bias, gamma, weight, bias, step,
                    step != nullptr ? &*step_bias : nullptr);
  const Sizes& in = whole.in;
  const Tensor answer = torch::stable::new_empty(x, {in.batch, in.height, in.width, in.channels});
  auto* y = static_cast<__half*>(answer.data_ptr());
  const bool many = in.batch >= kManyImages && takes_many_images(in.channels, whole.wide);
  if (!many && run_on_hopper(whole, y, stream)) {
    return answer;
  }
  if (step != nullptr) {
    return convnext_stage_cuda(norm_downsample_cuda(x, *step, *step_bias), taps, taps_bias, wide_weight, wide_bias,
                               gamma, weight, bias, std::nullopt, std::nullopt);
  }
  const Tensor between = torch::stable::new_empty(x, {in.batch, in.height, in.width, whole.wide});
  auto* h = static_cast<__half*>(between.data_ptr());
  many ? run_batched(whole, h, y, stream) : run_halves(whole, h, y, stream);
  return answer;
}

template <class V>
RegisterKernel registered(const char* name) {
  return RegisterKernel({name, reinterpret_cast<const void*>(V::kKernel), kThreads, sizeof(typename V::Memory)});
}
const RegisterKernel kernels[] = {
    registered<Stage96>("convnext_stage<96>"), registered<Stage192>("convnext_stage<192>"),
    registered<Stage384>("convnext_stage<384>"), registered<Stage768>("convnext_stage<768>")};

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
      "Tensor weight, Tensor bias, Tensor? step_weight, Tensor? step_bias) -> Tensor y");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("convnext_stage", TORCH_BOX(&lpkernels::convnext::convnext_stage_cuda));
}
