"""MTCNN: three small networks that find faces and five landmarks of each (Zhang et al. 2016, arXiv 1604.02878).

The weights come from the wheel of the package ``mtcnn`` (MIT), whose own program needs TensorFlow; here PyTorch runs
them. Edges of boxes and points are in pixels of the picture, the upper left corner of its first pixel at (0, 0).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernels.animate.landmarks import Array
from lpkernels.errors import InputError

_CELL, _STRIDE = 12, 2  # the window of the proposal network and its step
_PYRAMID = 0.709  # each picture of the pyramid has half the area of the one before
_SMALLEST = 20  # pixels: the least face of MTCNN
_OF_SIDE = 1 / 24  # faces under this part of the picture's shorter side are not looked for
_THRESHOLDS = (0.6, 0.7, 0.75)  # of the three networks, each stricter than the one before
_PATCHES = 512  # proposals kept, the most likely ones
_CHUNK = 64

Layers = tuple[Tensor, ...]
Network = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""Patches (N, 3, s, s) to shifts of edges (N, 4), scores (N,), and landmarks (N, 10) or none."""


class Face(NamedTuple):
    """A face: ``box`` (4,) left, top, right, bottom; ``landmarks`` (5, 2) eyes, nose, corners of the mouth."""

    score: float
    box: Array
    landmarks: Array


def find(picture: Tensor) -> list[Face]:
    """The faces in a uint8 (H, W, 3) RGB picture on any device, computed on the CPU; in no order.

    Raises:
        InputError: the package with the weights is not installed.
    """
    proposal, refinement, output = (_weights(name) for name in ("pnet", "rnet", "onet"))
    with torch.inference_mode():
        pixels = (picture.permute(2, 0, 1)[None].float().cpu() - 127.5) / 128
        boxes = _proposals(pixels, proposal)
        boxes, _ = _refined(pixels, boxes, 24, _THRESHOLDS[1], partial(_refinement, refinement))
        boxes, points = _refined(pixels, boxes, 48, _THRESHOLDS[2], partial(_output, output))
    return [
        Face(float(box[4]), box[:4].double().numpy(), landmarks.double().numpy())
        for box, landmarks in zip(boxes, points, strict=True)
    ]


def _proposals(pixels: Tensor, layers: Layers) -> Tensor:
    """Candidates (N, 5): square boxes and scores."""
    height, width = pixels.shape[2:]
    scale = _CELL / max(_SMALLEST, min(height, width) * _OF_SIDE)
    found = [pixels.new_zeros(0, 9)]
    while min(height, width) * scale >= _CELL:
        size = (max(_CELL, round(height * scale)), max(_CELL, round(width * scale)))
        small = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        shifts, scores = (answer[0] for answer in _proposal(layers, small))
        rows, columns = (scores > _THRESHOLDS[0]).nonzero().T
        corner = torch.stack([columns, rows], 1) * _STRIDE
        to_picture = torch.tensor([width / size[1], height / size[0]] * 2)
        cells = torch.cat([corner, corner + _CELL], 1) * to_picture
        level = torch.cat([cells, scores[rows, columns, None], shifts[:, rows, columns].T], 1)
        found.append(level[_distinct(level, 0.5)])
        scale *= _PYRAMID
    candidates = torch.cat(found)
    candidates = candidates[_distinct(candidates, 0.7)][:_PATCHES]
    return _squares(_shifted(candidates[:, :5], candidates[:, 5:]))


def _refined(pixels: Tensor, boxes: Tensor, side: int, threshold: float, network: Network) -> tuple[Tensor, Tensor]:
    """The candidates that a network takes for faces, (M, 5), and their landmarks (M, 5, 2); squares before the last."""
    kept, points = [boxes.new_zeros(0, 5)], [boxes.new_zeros(0, 5, 2)]
    for part in boxes.split(_CHUNK):
        shifts, scores, landmarks = network(_patches(pixels, part, side))
        sure = scores > threshold
        origin, size = part[sure, None, :2], (part[:, 2:4] - part[:, :2])[sure, None]
        kept.append(_shifted(torch.cat([part[sure, :4], scores[sure, None]], 1), shifts[sure]))
        if landmarks is not None:
            points.append(origin + size * landmarks[sure].view(-1, 2, 5).transpose(1, 2))
    faces, last = torch.cat(kept), len(points) > 1
    chosen = _distinct(faces, 0.7, of_smaller=last)
    return (faces[chosen], torch.cat(points)[chosen]) if last else (_squares(faces[chosen]), points[0])


def _patches(pixels: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The boxes' pixels as squares (N, 3, side, side), grey outside the picture."""
    height, width = pixels.shape[2:]
    patches = [pixels.new_empty(0, 3, side, side)]
    for box in boxes[:, :4].round().int().tolist():
        left, top, right, bottom = box
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        inside = pixels[:, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        borders = (max(-left, 0), max(right - max(width, left), 0), max(-top, 0), max(bottom - max(height, top), 0))
        patch = F.pad(inside, borders)
        patches.append(F.interpolate(patch, (side, side), mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(patches)


def _shifted(boxes: Tensor, shifts: Tensor) -> Tensor:
    """Boxes (N, 5) with their edges moved by parts of their width and height."""
    size = (boxes[:, 2:4] - boxes[:, :2]).repeat(1, 2)
    return torch.cat([boxes[:, :4] + shifts * size, boxes[:, 4:]], 1)


def _squares(boxes: Tensor) -> Tensor:
    """Boxes (N, 5) grown to squares about their middles."""
    middle = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([middle - half, middle + half, boxes[:, 4:]], 1)


def _distinct(boxes: Tensor, overlap: float, of_smaller: bool = False) -> Tensor:
    """Non-maximum suppression: indices, the most likely first, of boxes that share at most ``overlap``.

    The part shared is of the union of two boxes, or of the smaller one.
    """
    order = boxes[:, 4].argsort(descending=True)
    edges = boxes[order, :4]
    area = (edges[:, 2:] - edges[:, :2]).clamp(min=0).prod(1)
    kept = []
    alive = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if alive[index]:
            kept.append(index)
            shared = torch.minimum(edges[index, 2:], edges[:, 2:]) - torch.maximum(edges[index, :2], edges[:, :2])
            common = shared.clamp(min=0).prod(1)
            whole = torch.minimum(area, area[index]) if of_smaller else area + area[index] - common
            alive &= common <= overlap * whole
    return order[kept]


def _proposal(layers: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    x = F.max_pool2d(_convolved(x, layers[0:3]), 2, ceil_mode=True)
    x = _convolved(_convolved(x, layers[3:6]), layers[6:9])
    return F.conv2d(x, layers[9], layers[10]), F.conv2d(x, layers[11], layers[12]).softmax(1)[:, 1]


def _refinement(layers: Layers, x: Tensor) -> tuple[Tensor, Tensor, None]:
    x = F.max_pool2d(_convolved(x, layers[0:3]), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_convolved(x, layers[3:6]), 3, 2)
    x = _flat(_convolved(x, layers[6:9]), layers[9:12])
    return F.linear(x, *layers[12:14]), F.linear(x, *layers[14:16]).softmax(1)[:, 1], None


def _output(layers: Layers, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = F.max_pool2d(_convolved(x, layers[0:3]), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_convolved(x, layers[3:6]), 3, 2)
    x = F.max_pool2d(_convolved(x, layers[6:9]), 2, ceil_mode=True)
    x = _flat(_convolved(x, layers[9:12]), layers[12:15])
    shifts, points, scores = (F.linear(x, *layers[at : at + 2]) for at in (15, 17, 19))
    return shifts, scores.softmax(1)[:, 1], points


def _convolved(x: Tensor, layers: Layers) -> Tensor:
    weight, bias, slope = layers
    return F.prelu(F.conv2d(x, weight, bias), slope)


def _flat(x: Tensor, layers: Layers) -> Tensor:
    """A dense layer over the values in the order column, row, channel."""
    weight, bias, slope = layers
    return F.prelu(F.linear(x.permute(0, 3, 2, 1).flatten(1), weight, bias), slope)


def check_installed() -> None:
    """Raise InputError, with the command that installs it, where the package with the weights is missing."""
    _folder()


@lru_cache(maxsize=3)
def _weights(name: str) -> Layers:
    """A network's tensors in PyTorch's layout."""
    folder = _folder()
    import joblib  # it unpickles: the wheel is trusted as the code of any package is

    return tuple(_layout(np.asarray(array, dtype=np.float32)) for array in joblib.load(folder / f"{name}.lz4"))


def _folder() -> Path:
    """Where the package keeps its weights; found and not imported, for its import needs TensorFlow."""
    specs = [importlib.util.find_spec(name) for name in ("mtcnn", "joblib", "lz4")]
    if any(spec is None for spec in specs) or not (places := specs[0] and specs[0].submodule_search_locations):
        raise InputError("finding faces needs the extra 'face': pip install 'lpkernels[face]'")
    return Path(next(iter(places))) / "assets" / "weights"


def _layout(array: Any) -> Tensor:
    """TensorFlow's (h, w, in, out), (in, out) and (1, 1, channels) as PyTorch has them."""
    tensor = torch.from_numpy(array)
    if tensor.dim() == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor.T.contiguous() if tensor.dim() == 2 else tensor.flatten()
