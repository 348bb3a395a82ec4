"""What paste_back and warp_mask refuse: every error names the argument; the kernel checks for itself too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lpkernels import errors, ops
from tests.ops.paste_inputs import Call, flat, make_call, similarity


def test_the_kernel_checks_for_itself() -> None:
    if reason := ops.registry()["paste_back"].backends["cpu"].why_not("cpu"):
        pytest.skip(reason)
    good = flat(make_call(), True)
    for index, value, message in [
        (0, good[0].float(), "image must be contiguous uint8"),
        (0, good[0][:, :, :1].contiguous(), "S at least 2"),
        (1, good[1][:-1].contiguous(), "source must have shape"),
        (2, good[2][:-1].contiguous(), "mask must be contiguous uint8 of shape"),
        (3, [math.nan, *good[3][1:]], "six finite numbers"),
        (3, good[3][:5], "six finite numbers"),
        (3, [1, 2, 0, 2, 4, 0], "singular"),
        (4, [60, *good[4][1:]], "box must lie in the source"),
        (4, [-1, *good[4][1:]], "box must lie in the source"),
        (4, [0, 0, 0, 0], "box must lie in the source"),
        (4, [2**62, 0, 2**62, 2**62], "box must lie in the source"),
        (6, good[6][:1], "out the same batch"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.lpkernels.paste_back(*good[:index], value, *good[index + 1 :])


def bad(**changed: Any) -> Call:
    return {**make_call(), **changed}


GOOD = make_call()
SHARED = torch.zeros(2 * 48 * 70 * 3 + 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(image=1), TypeError, "image must be a torch.Tensor, got int"),
        (bad(image=GOOD["image"].float()), TypeError, "image must have dtype uint8, got float32"),
        (bad(image=GOOD["image"][0]), ValueError, r"image must have shape \(B, S, S, 3\)"),
        (bad(image=GOOD["image"][:0]), ValueError, "no empty dimension"),
        (bad(image=GOOD["image"][:, :1]), ValueError, "at least 2x2 pixels"),
        (bad(source=GOOD["source"].half()), TypeError, "source must have dtype uint8"),
        (bad(source=torch.zeros(3, 48, 70, 3).byte()), ValueError, r"source must have shape \(2, H, W, 3\)"),
        (bad(source=torch.zeros(48, 70, 4).byte()), ValueError, r"source must have shape \(H, W, 3\)"),
        (bad(source=torch.zeros(48, 0, 3).byte()), ValueError, "no empty dimension"),
        (bad(source=GOOD["source"].to("meta")), ValueError, "source must be on the device of image"),
        (bad(mask=GOOD["mask"].float()), TypeError, "mask must have dtype uint8"),
        (bad(mask=GOOD["mask"][None]), ValueError, "mask must have shape"),
        (bad(mask=GOOD["mask"][:-1]), ValueError, "box must have the mask's width and height"),
        (bad(matrix=[[1, 0, math.nan], [0, 1, 0]]), ValueError, "matrix must be finite"),
        (bad(matrix=[[1, 2, 3], [2, 4, 6]]), ValueError, "matrix is singular"),
        (bad(matrix=[[0, 0, 3], [0, 0, 6]]), ValueError, "matrix is singular"),
        (bad(matrix=torch.zeros(2, 2)), ValueError, "matrix must be 2x3, or 3x3 .* got 4 numbers"),
        (bad(matrix=np.ones((3, 3))), ValueError, "last row 0, 0, 1"),
        (bad(matrix="eye"), TypeError, "matrix must be a 2x3 or 3x3 matrix of numbers"),
        (bad(matrix=None), TypeError, "matrix must be a 2x3 or 3x3 matrix of numbers"),
        (bad(matrix=torch.eye(3, device="meta")), ValueError, "matrix must be on the CPU"),
        (bad(box=(60, 0, *GOOD["box"][2:])), ValueError, "box must lie in the source, 70x48"),
        (bad(box=(0, -1, *GOOD["box"][2:])), ValueError, "box must lie in the source"),
        (bad(box=(0, 0, 0, 0)), ValueError, "box must have the mask's"),
        (bad(box=(0, 0, 4)), ValueError, "box must be x, y, width, height"),
        (bad(copy_rest=False), ValueError, "copy_rest=False needs an out"),
        (bad(out=torch.zeros(1, 48, 70, 3).byte()), ValueError, r"out must have shape \(2, 48, 70, 3\)"),
        (bad(out=torch.zeros(2, 48, 70, 3)), TypeError, "out must have dtype uint8"),
        (bad(out=torch.zeros(2, 48, 140, 3).byte()[:, :, ::2]), ValueError, "out must be contiguous"),
        (bad(out=torch.zeros(2, 48, 70, 3, device="meta").byte()), ValueError, "out must be on the device of image"),
        (
            bad(source=SHARED[3:].view(2, 48, 70, 3), out=SHARED[:-3].view(2, 48, 70, 3)),
            ValueError,
            "out must not overlap source",
        ),
        (
            bad(source=SHARED[: 48 * 70 * 3].view(48, 70, 3), out=SHARED[:-3].view(2, 48, 70, 3)),
            ValueError,
            "out must not overlap source",
        ),
        (
            bad(image=SHARED[: 2 * 40 * 40 * 3].view(2, 40, 40, 3), out=SHARED[:-3].view(2, 48, 70, 3)),
            ValueError,
            "out must not overlap image",
        ),
    ],
)
def test_bad_arguments_are_named(arguments: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.paste_back(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": np.ones((4, 4))}, TypeError, "mask must be a torch.Tensor"),
        ({"mask": torch.ones(4, 4).half()}, TypeError, "mask must have dtype uint8, float32, float64"),
        ({"mask": torch.ones(4, 4, 3)}, ValueError, r"mask must have shape \(S, S\)"),
        ({"mask": torch.ones(0, 4)}, ValueError, "no empty dimension"),
        ({"mask": torch.full((4, 4), math.nan)}, ValueError, "mask must have values in 0..1"),
        ({"mask": torch.full((4, 4), 1.5)}, ValueError, "mask must have values in 0..1"),
        ({"mask": torch.zeros(4, 4)}, ValueError, "mask must cover a pixel"),
        ({"M_c2o": similarity(1, 0, 500, 0)}, ValueError, "mask must cover a pixel .* puts it outside"),
        ({"M_c2o": similarity(1, 0, 1e300, 0)}, ValueError, "mask must cover a pixel"),
        ({"M_c2o": [[1e300, 0, 0], [0, 1e300, 0]]}, ValueError, "M_c2o is singular"),
        ({"M_c2o": [[math.inf, 0, 0], [0, 1, 0]]}, ValueError, "M_c2o must be finite"),
        ({"size": (0, 5)}, ValueError, "size must be the picture's height and width"),
        ({"size": (5,)}, ValueError, "size must be the picture's height, width in whole pixels"),
    ],
)
def test_bad_masks_are_named(arguments: Call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.warp_mask(**{"mask": torch.ones(4, 4), "M_c2o": similarity(1, 0, 0, 0), "size": (9, 9), **arguments})


def test_no_silent_fallback() -> None:
    with ops.use_backend("cuda"), pytest.raises(errors.BackendError, match="cuda: needs cuda tensors"):
        ops.paste_back(**make_call())
