"""What the tests of paste_back share: faces, pictures, places in them, and the float64 truth."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lpkernels import ops, ref

Call = dict[str, Any]
FACE = (2, 40, 40)  # batch, and the animated picture's height and width


def similarity(scale: float, degrees: float, x: float, y: float) -> list[list[float]]:
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return [[cosine, -sine, x], [sine, cosine, y]]


PLACES = {
    "inside": similarity(0.6, 12, 15, 9),
    "larger, over an edge": similarity(1.7, -40, -9.25, 12.5),
    "small, in a corner": similarity(0.21, 95, 61.3, 40.2),
    "mirrored and sheared": [[-0.8, 0.3, 40.7], [0.1, 1.1, 3.0]],
}


def levels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def make_mask(height: int = 40, width: int = 40) -> Tensor:
    """Zero along the border, ramps, a plateau; not symmetric."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    nearest = torch.minimum(torch.minimum(x, width - 1 - x), torch.minimum(y, 2 * (height - 1 - y)))
    return (nearest * 37).clamp(max=255).to(torch.uint8)


def make_call(
    place: str = "inside", face: tuple[int, ...] = FACE, picture: tuple[int, ...] = (48, 70), device: str = "cpu"
) -> Call:
    """Arguments of the op; ``picture`` with a batch in front has a source for each."""
    matrix = PLACES[place]
    box, tile = ops.warp_mask(make_mask(*face[1:]).to(device), matrix, picture[-2:])
    image, source = levels(*face, 3).to(device), levels(*picture, 3, seed=1).to(device)
    return {"image": image, "source": source, "mask": tile, "matrix": matrix, "box": box}


def expected(call: Call) -> Tensor:
    numbers = [number for row in call["matrix"] for number in row]
    tensors = [call[name].cpu() for name in ("image", "source", "mask")]
    return ref.paste_back(*tensors, numbers, call["box"])


def assert_levels(actual: Tensor, truth: Tensor) -> None:
    """A level apart where the warp's rounding falls to either side, which is rare."""
    difference = (actual.cpu().int() - truth.int()).abs()
    assert actual.shape == truth.shape
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 2e-3


def flat(call: Call, copy_rest: bool) -> list[Any]:
    """The op's own arguments."""
    numbers = [float(number) for row in call["matrix"] for number in row]
    out = call["source"].expand(call["image"].shape[0], 48, 70, 3).clone()
    return [call["image"], call["source"], call["mask"], numbers, list(call["box"]), copy_rest, out]
