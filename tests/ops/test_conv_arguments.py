"""What the convolution ops' arguments must be, tested through conv_act: layouts, slices, overlaps, packed weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lpkernels import ops

ZEROS = torch.zeros(2, 4, 4, 24)


def bad(**changed: object) -> dict[str, object]:
    """x (2, 4, 4, 8), a slice of ``ZEROS``, with 3 x 3 taps to 8 outputs, and what makes the call wrong."""
    right = {"x": ZEROS[..., :8], "weight": torch.zeros(8, 3, 3, 8), "bias": torch.zeros(8)}
    return {**right, **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=1), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(4, 4, 8)), ValueError, r"x must have shape \(B, H, W, C\), got 3 dimensions"),
        (bad(x=torch.zeros(2, 0, 4, 8)), ValueError, "x must have .* no empty dimension"),
        (bad(x=torch.zeros(2, 4, 4, 8).double()), TypeError, "x must have dtype float16, bfloat16, float32"),
        (bad(x=torch.zeros(2, 8, 4, 4).movedim(1, 3)), ValueError, "x must be channels-last"),
        (bad(x=torch.zeros(2, 4, 8, 8)[:, :, :4]), ValueError, "x must be channels-last with dense pixels"),
        (bad(x=torch.zeros(1, 4, 4, 8).expand(2, 4, 4, 8)), ValueError, "x must be channels-last"),
        (bad(weight=torch.zeros(8, 3, 3, 9)), ValueError, r"weight must have shape \(O, kh, kw, 8\)"),
        (bad(weight=torch.zeros(8, 5, 3, 8)), ValueError, "weight must have 1 or 3 taps"),
        (bad(weight=torch.zeros(8, 3, 3, 8).half()), TypeError, "weight must have the dtype of x"),
        (bad(weight=torch.zeros(8, 8, 3, 3).movedim(1, 3)), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(9)), ValueError, r"bias must have shape \(8\)"),
        (bad(bias=torch.zeros(8).half()), TypeError, "bias must have dtype float32"),
        (bad(bias=torch.zeros(8, device="meta")), ValueError, "bias must be on the device of x"),
        (bad(residual=torch.zeros(2, 4, 2, 8)), ValueError, r"residual must have shape \(2, 4, 4, 8\)"),
        (bad(residual=torch.zeros(2, 4, 4, 8).half()), TypeError, "residual must have the dtype of x"),
        (bad(x=torch.zeros(2, 5, 5, 8), residual=torch.zeros(2, 2, 2, 8)), ValueError, "needs even H and W"),
        (bad(gain=torch.zeros(2, 4, 5)), ValueError, r"gain must have shape \(2, 4, 4\)"),
        (
            bad(x=torch.zeros(2, 1, 4, 4, 8), weight=torch.zeros(8, 1, 1, 1, 8), gain=torch.zeros(2, 1, 4, 4)),
            ValueError,
            "gain goes with pictures",
        ),
        (bad(out=torch.zeros(2, 4, 4, 9)), ValueError, r"out must have shape \(2, 4, 4, 8\)"),
        (bad(out=torch.zeros(2, 4, 4, 8).half()), TypeError, "out must have the dtype of x"),
        (bad(out=torch.zeros(2, 8, 4, 4).movedim(1, 3)), ValueError, "out must be channels-last"),
        (bad(out=ZEROS[..., 4:12]), ValueError, "out must not overlap x"),
        (bad(residual=ZEROS[..., 8:16], out=ZEROS[..., 8:16]), ValueError, "out must not overlap residual"),
        (bad(stats=torch.zeros(2, 8, 3)), ValueError, r"stats must have shape \(2, 8, 2\)"),
        (bad(bias=ZEROS.view(-1)[:8], stats=ZEROS.view(-1)[:32].view(2, 8, 2)), ValueError, "stats must not overlap x"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.conv_act(**arguments)


def test_other_channels_of_the_same_buffer_are_no_overlap() -> None:
    buffer = torch.zeros(2, 4, 4, 24)
    arguments = bad(x=buffer[..., :8], residual=buffer[..., 8:16], out=buffer[..., 16:])
    ops.conv_act(**{**arguments, "bias": torch.ones(8)})  # type: ignore[arg-type]
    assert torch.equal(buffer.sum((0, 1, 2)), torch.tensor([0.0] * 16 + [32.0] * 8))


def test_packing() -> None:
    weight = torch.randn(6, 11, 3, 3)
    packed = ops.pack_conv_weight(weight)
    assert packed.shape == (6, 3, 3, 16)
    assert packed.is_contiguous()
    assert torch.equal(packed[..., :11].movedim(-1, 1), weight)
    assert packed[..., 11:].abs().sum() == 0
    assert ops.pack_conv_weight(torch.zeros(2, 16, 1, 3, 3)).shape == (2, 1, 3, 3, 16)
    with pytest.raises(ValueError, match=r"weight must have shape \(O, C, kh, kw\), got 3 dimensions"):
        ops.pack_conv_weight(torch.zeros(2, 3, 4))
