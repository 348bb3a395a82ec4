// What conv_spade's kernel is launched with, by conv_spade and by spade_blocks: a convolution and the SPADE behind it,
// once or several times in turn.
#pragma once

#include "conv/conv_act.cuh"
#include "spade/modulation.cuh"

namespace lpkernels {

constexpr int kSpadeCluster = 2;  // blocks that load weights for each other

// Steps of equal shape: step s has the s-th of stacked weights and biases, and of actv the channels from s times the
// first step's on. It writes out, which the next one convolves.
struct ConvSpadeSteps {
  ConvShape conv, spade;        // of a step
  ConvAct::Params conv_params;  // the first step's bias; the first residual, and out: where y is kept
  SpadeParams spade_params;     // the first step's bias; no x
  int count = 1;
  bool winograd = false;  // the weights' form
  bool pairs = false;     // two steps are a residual block: its first has no residual and keeps no y

  LPKERNELS_HOST_DEVICE bool last(int step) const { return step + 1 == count; }

  LPKERNELS_HOST_DEVICE ConvAct::Params conv_params_of(int step) const {
    ConvAct::Params params = conv_params;
    params.bias += step * conv.outputs;
    if (pairs && step % 2 == 0) {
      params.residual = nullptr;
      params.out = nullptr;
    } else if (step > 1) {  // y of the block before: each value is read by the thread that wrote it
      params.residual = params.out;
      params.residual_stride = params.out_stride;
    }
    return params;
  }

  LPKERNELS_HOST_DEVICE SpadeParams spade_params_of(int step) const {
    SpadeParams params = spade_params;
    params.bias += step * spade.outputs;
    return params;
  }

  // The part of either convolution that block `index` has in a step.
  LPKERNELS_HOST_DEVICE ConvBlock conv_block(int block_n, int index, int step) const {
    ConvBlock block = block_in_cluster(conv, block_n, kSpadeCluster, index);
    block.weight_row += step * conv.outputs;
    return block;
  }
  LPKERNELS_HOST_DEVICE ConvBlock spade_block(int block_n, int index, int step) const {
    ConvBlock block = block_in_cluster(spade, block_n, kSpadeCluster, index);
    block.weight_row += step * spade.outputs;
    block.c = step * spade.channels;
    return block;
  }

  // What TMA is told of: the weights of all steps, one behind the other, and actv of all steps.
  template <class Loop>
  TensorBox weights(ConvShape shape) const {
    shape.outputs *= count;
    return Loop::weight_box(shape);
  }
  template <class Loop>
  TensorBox actv(int64_t pixel_stride) const {
    ConvShape wide = spade;
    wide.channels *= count;
    return Loop::x_box(pixel_stride, wide);
  }
};

// The first step's tensors checked: the others' lie behind them.
ConvSpadeSteps conv_spade_steps(const char* op, const Activation& x, const Tensor& weight, const Tensor& bias,
                                const Activation& actv, const Tensor& spade_weight, const Tensor& spade_bias,
                                double negative_slope, const Activation& out);

// Whether one kernel can take them: the weights' products are shared, the tiles are whole and the GPU holds all of its
// blocks at once.
bool runs_as_one(const ConvSpadeSteps& steps);

// Launches it; `weight` and `spade_weight` are the first step's, `like` any tensor of floats.
void launch_conv_spade(const char* op, const ConvSpadeSteps& steps, const Activation& x, const Tensor& weight,
                       const Activation& actv, const Tensor& spade_weight, const Tensor& like, cudaStream_t stream);

void conv_spade_cuda(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& actv,
                     const Tensor& spade_weight, const Tensor& spade_bias, double negative_slope,
                     const std::optional<Tensor>& residual, const std::optional<Tensor>& y, const Tensor& out);

}  // namespace lpkernels
