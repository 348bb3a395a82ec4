// spade_blocks on Hopper: all steps in one kernel where that can take a step (conv_spade.cuh), else one after the other
// as conv_spade takes them.
#include "spade/conv_spade.h"

#include "common/cuda.h"

#include <tuple>

namespace lpkernels {
namespace {

constexpr const char* kOp = "spade_blocks";

// Those of one step out of all.
struct StepTensors {
  Tensor weight, bias, spade_weight, spade_bias;
};

struct StackedTensors {
  const Tensor &weight, &bias, &spade_weight, &spade_bias;

  StepTensors of(int64_t step) const {
    using torch::stable::select;
    return {select(weight, 0, step), select(bias, 0, step), select(spade_weight, 0, step), select(spade_bias, 0, step)};
  }

  // Raises unless all hold as many steps, at least two.
  int64_t count() const {
    const int64_t steps = weight.size(0);
    const auto holds = [&](const Tensor& tensor, int64_t dims) {
      return tensor.dim() == dims && tensor.size(0) == steps && tensor.is_contiguous();
    };
    const bool holds_spade = holds(spade_weight, 5) || holds(spade_weight, 4);  // of taps, or of products
    STD_TORCH_CHECK(holds(weight, 5) && holds(bias, 2) && holds_spade && holds(spade_bias, 2) && steps > 1, kOp,
                    ": weights and biases must be contiguous and stacked, of the same two steps or more; got ",
                    shape_string(weight), ", ", shape_string(bias), ", ", shape_string(spade_weight), " and ",
                    shape_string(spade_bias));
    return steps;
  }
};

std::tuple<Tensor, Tensor> one_by_one(const Tensor& x, const Tensor& dx, const Tensor& actv,
                                      const StackedTensors& stacked, double negative_slope) {
  const int64_t count = stacked.weight.size(0), hidden = actv.size(3) / count;
  Tensor y = x, out = dx, all = actv;
  for (int64_t i = 0; i < count; ++i) {
    const StepTensors step = stacked.of(i);
    const Tensor part = torch::stable::narrow(all, 3, i * hidden, hidden), from = out;
    std::optional<Tensor> residual, kept;
    if (i % 2 == 1) {
      residual = y;
      kept = y = torch::stable::new_empty(x, x.sizes());
    }
    out = torch::stable::new_empty(x, x.sizes());
    conv_spade_cuda(from, step.weight, step.bias, part, step.spade_weight, step.spade_bias, negative_slope, residual,
                    kept, out);
  }
  return {y, out};
}

std::tuple<Tensor, Tensor> spade_blocks_cuda(const Tensor& x_tensor, const Tensor& dx_tensor, const Tensor& actv_tensor,
                                             const Tensor& weight, const Tensor& bias, const Tensor& spade_weight,
                                             const Tensor& spade_bias, double negative_slope) {
  const StackedTensors stacked{weight, bias, spade_weight, spade_bias};
  const int64_t count = stacked.count();
  const Activation x = activation(kOp, "x", x_tensor), dx = activation(kOp, "dx", dx_tensor);
  Activation actv = activation(kOp, "actv", actv_tensor);
  STD_TORCH_CHECK(x.channels == weight.size(1) && actv.channels % count == 0, kOp,
                  ": x must have the outputs of weight, and actv channels for each of ", count, " steps; got ",
                  shape_string(x_tensor), " and ", shape_string(actv_tensor));
  actv.channels /= static_cast<int>(count);
  const torch::stable::accelerator::DeviceGuard guard(x_tensor.get_device_index());
  const StepTensors first = stacked.of(0);
  const Tensor y = torch::stable::new_empty(x_tensor, x_tensor.sizes());
  const Tensor out = torch::stable::new_empty(x_tensor, x_tensor.sizes());
  const Activation answer = activation(kOp, "out", out);
  ConvSpadeSteps steps = conv_spade_steps(kOp, dx, first.weight, first.bias, actv, first.spade_weight, first.spade_bias,
                                          negative_slope, answer);
  if (!runs_as_one(steps)) {
    return one_by_one(x_tensor, dx_tensor, actv_tensor, stacked, negative_slope);
  }
  steps.count = static_cast<int>(count);
  steps.pairs = true;
  set_residual(kOp, steps.conv_params, x_tensor, answer);
  steps.conv_params.out = static_cast<__half*>(y.data_ptr());
  steps.conv_params.out_stride = answer.pixel_stride;
  launch_conv_spade(kOp, steps, dx, first.weight, actv, first.spade_weight, bias, current_stream(x_tensor));
  return {y, out};
}

}  // namespace
}  // namespace lpkernels

STABLE_TORCH_LIBRARY_FRAGMENT(lpkernels, library) {
  library.def(
      "spade_blocks(Tensor x, Tensor dx, Tensor actv, Tensor weight, Tensor bias, Tensor spade_weight, Tensor "
      "spade_bias, float negative_slope) -> (Tensor y, Tensor out)");
}

STABLE_TORCH_LIBRARY_IMPL(lpkernels, CUDA, library) {
  library.impl("spade_blocks", TORCH_BOX(&lpkernels::spade_blocks_cuda));
}
