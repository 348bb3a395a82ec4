"""convnext_stage: ConvNeXt V2 blocks of one size, one after the other, and the step to this size before them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lpkernels import ref
from lpkernels.ops import _conv, _convnext
from lpkernels.ops._op import Op, Signature, native, triton_kernel
from lpkernels.ops.depthwise_linear import KERNEL, MOST_CHANNELS
from lpkernels.ops.grn_linear import MOST_CHANNELS as MOST_WIDTH
from lpkernels.ops.norm_downsample import MOST_CHANNELS as MOST_CHANNELS_OF_STEP

MOST_IMAGES = 3  # of the CUDA kernel of a stage, which takes one after the other; those of many are faster from 4 on
TENSORS = 8  # without those of a step
MANY_IMAGES_MULTIPLES = 32, 64  # of C and K, where the kernels are those of many images


def _fake(x: Tensor, taps: Tensor, *rest: Tensor | None) -> Tensor:
    batch, height, width, _ = x.shape
    if rest[-1] is not None:
        height, width = height // 2, width // 2
    return x.new_empty((batch, height, width, taps.shape[3]))


def _cuda_refuses(signature: Signature) -> str | None:
    (shape, dtype), (_, wide, channels) = signature[0], signature[3][0]
    multiples = _convnext.VECTOR, _convnext.VECTOR
    steps = len(signature) > TENSORS
    if steps and (shape[3] % _convnext.VECTOR or shape[3] > MOST_CHANNELS_OF_STEP):
        return (
            f"made for a step from channels in multiples of {_convnext.VECTOR}, at most {MOST_CHANNELS_OF_STEP}; got "
            f"{shape[3]}"
        )
    if shape[0] > MOST_IMAGES:
        if reason := _convnext.no_hopper():
            return f"made for at most {MOST_IMAGES} images on this GPU, for more it {reason}; got {shape[0]}"
        multiples = MANY_IMAGES_MULTIPLES
    fits = channels % multiples[0] == 0 and wide % multiples[1] == 0
    if dtype == torch.float16 and fits and channels <= MOST_CHANNELS and wide <= MOST_WIDTH:
        return None
    return (
        f"made for float16, C and K of {shape[0]} images in multiples of {multiples[0]} and {multiples[1]}, at most "
        f"{MOST_CHANNELS} and {MOST_WIDTH}; got {dtype}, {channels}, {wide}"
    )


def _load() -> Callable[..., Tensor]:
    from lpkernels.triton.convnext_stage import convnext_stage

    return convnext_stage


_OP = Op(
    "convnext_stage(Tensor x, Tensor taps, Tensor taps_bias, Tensor wide_weight, Tensor wide_bias, Tensor gamma,"
    " Tensor weight, Tensor bias, Tensor? step_weight, Tensor? step_bias) -> Tensor y",
    _fake,
    (
        native("convnext_stage", "cuda", clusters=True, refuses=_cuda_refuses),
        triton_kernel("convnext_stage", _load, refuses=_convnext.no_tensor_cores),
        *_convnext.plain(ref.convnext_stage_in),
    ),
)


def convnext_stage(
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    wide_weight: Tensor,
    wide_bias: Tensor,
    gamma: Tensor,
    weight: Tensor,
    bias: Tensor,
    step_weight: Tensor | None = None,
    step_bias: Tensor | None = None,
) -> Tensor:
    """N blocks of ConvNeXt V2 (arXiv 2301.00808, figure 5), each with its residual, and the step before them if any::

        x          = norm_downsample(x, step_weight, step_bias)
        h, squares = depthwise_linear(x, taps, taps_bias, wide_weight, wide_bias)
        x          = grn_linear(h, squares, gamma, weight, bias, residual = x)

    Where the layer norms' affine and GRN's beta have gone, those ops say. On Hopper GPUs that hold all of its
    blocks at once (of an image of the published stages, on 132 multiprocessors) it is one kernel for an image, up to
    three images; for more images three kernels for each of the N blocks. Other GPUs with thread-block clusters have two
    kernels for each of them. The step is in the one kernel where 384 is a multiple of its channels, at most C / 2, else
    a kernel of its own.

    Args:
        x: (B, H, W, C), channels-last, float16, bfloat16 or float32; with a step (B, H', W', C') of any channels, where
            H = H' // 2 and W = W' // 2.
        taps: (N, 7, 7, C), float32.
        taps_bias: (N, C), float32.
        wide_weight: (N, K, C), the dtype of ``x``: of the widening linear layers.
        wide_bias: (N, K), float32.
        gamma: (N, K), float32.
        weight: (N, C, K), the dtype of ``x``: of the narrowing ones.
        bias: (N, C), float32.
        step_weight: (C, 2, 2, C'), the dtype of ``x``.
        step_bias: (C,), float32; with ``step_weight`` or not at all.

    Returns:
        (B, H, W, C), the dtype of ``x``.

    Raises:
        TypeError: an argument is no tensor or has a wrong dtype.
        ValueError: a shape or strides do not fit or devices differ.
        BackendError: no allowed backend can run this call.
        RuntimeError: an input requires a gradient, or a tensor is a view that does not start at 16 bytes.
    """
    x = _convnext.activation("x", x)
    channels: int | str = x.shape[3]
    if step_weight is not None:
        if min(x.shape[1:3]) < 2:
            raise ValueError(f"x must be at least 2 pixels high and wide for a step, got {tuple(x.shape)}")
        channels = "C"
    _conv.float32("taps", taps, x, ("N", KERNEL, KERNEL, channels))
    channels = taps.shape[3]
    blocks = taps.shape[0]
    if blocks == 0:
        raise ValueError("taps must hold at least one block, got 0")
    _conv.float32("taps_bias", taps_bias, x, (blocks, channels))
    _conv.weight("wide_weight", wide_weight, x, (blocks, "K", channels))
    wide = wide_weight.shape[1]
    _conv.float32("wide_bias", wide_bias, x, (blocks, wide))
    _conv.float32("gamma", gamma, x, (blocks, wide))
    _conv.weight("weight", weight, x, (blocks, channels, wide))
    _conv.float32("bias", bias, x, (blocks, channels))
    if (step_weight is None) != (step_bias is None):
        given, missing = ("step_bias", "step_weight") if step_weight is None else ("step_weight", "step_bias")
        raise ValueError(f"{given} is given without {missing}: a step needs both")
    if step_weight is not None:
        _conv.weight("step_weight", step_weight, x, (channels, 2, 2, x.shape[3]))
        _conv.float32("step_bias", step_bias, x, (channels,))
    y: Tensor = _OP(x, taps, taps_bias, wide_weight, wide_bias, gamma, weight, bias, step_weight, step_bias)
    return y
