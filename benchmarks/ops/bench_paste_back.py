"""paste_back: an animated face into its source picture, with the copy of the picture and without.

As kernels alone; and once with the way to the host, where the original does it with OpenCV.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.context import Context
from benchmarks.ops.bench_keypoint_transform import single_precision
from benchmarks.work import Candidate, Provider, Subject, Unavailable
from lpkernels import ops, ref
from lpkernels.animate.crop import Crop, Square, crop_from_square, feathered_mask
from lpkernels.ref.paste_back import invert

EIGHT_BIT_FLOOR = 5e-3  # relative: about one level where truncation falls to either side
FACE = 512
ANGLE = 8.0  # degrees
# Height and width of a picture, and the side of the face's square in it.
PICTURES = ((720, 1280, 400), (1080, 1920, 512), (2160, 3840, 1200))


class Published:
    """The original's formula on every pixel of the picture in float32; mask and positions are made once."""

    def __init__(self) -> None:
        self._held: tuple[Tensor, Tensor, Tensor] | None = None

    def _prepared(self, source: Tensor, mask: Tensor, matrix: Any, box: Any) -> tuple[Tensor, Tensor]:
        """Weights (H, W, 1) and sampling positions (1, H, W, 2) of the whole picture."""
        if self._held is None or self._held[0] is not mask:
            height, width = source.shape[:2]
            x, y, columns, rows = box
            weight = torch.zeros(height, width, 1, device=mask.device)
            weight[y : y + rows, x : x + columns, 0] = mask / 255.0
            to_face = torch.tensor(invert(matrix), device=mask.device).view(2, 3)
            scale = torch.tensor([2 / (FACE - 1)], device=mask.device)
            grid_y, grid_x = torch.meshgrid(
                torch.arange(height, device=mask.device), torch.arange(width, device=mask.device), indexing="ij"
            )
            points = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1).float()
            self._held = (mask, weight, (points @ to_face.T * scale - 1)[None])
        return self._held[1:]

    def __call__(
        self, image: Tensor, source: Tensor, mask: Tensor, matrix: Any, box: Any, copy_rest: bool, out: Tensor | None
    ) -> Tensor:
        weight, positions = self._prepared(source, mask, matrix, box)
        planes = image.permute(0, 3, 1, 2).float()
        warped = F.grid_sample(planes, positions.expand(len(image), -1, -1, -1), align_corners=True)
        warped = warped.permute(0, 2, 3, 1).round()
        return (weight * warped + (1 - weight) * source).clamp(0, 255).to(torch.uint8)


class OpenCV:
    """The original's way on the host: ``cv2.warpAffine`` of the square to the whole picture, and the blend in NumPy.

    Each source and the weights are brought there once, as for a clip. Raises Unavailable without cv2.
    """

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise Unavailable(f"the original's paste-back needs OpenCV: {error}") from error
        cv2.setNumThreads(0)  # as the original does
        self._warp: Callable[..., np.ndarray] = cv2.warpAffine
        self._sources: dict[int, tuple[Tensor, np.ndarray]] = {}
        self._weight: tuple[Tensor, np.ndarray] | None = None

    def __call__(self, image: Tensor, source: Tensor, mask: Tensor, matrix: Any, box: Any, *_: Any) -> Tensor:
        """One face (1, S, S, 3) to a picture (1, H, W, 3), both uint8, the latter on the host."""
        height, width = source.shape[:2]
        if id(source) not in self._sources:
            self._sources[id(source)] = source, source.cpu().numpy()
        if self._weight is None or self._weight[0] is not mask:
            x, y, columns, rows = box
            new = np.zeros((height, width, 3), np.float32)
            new[y : y + rows, x : x + columns] = mask.cpu().numpy()[..., None] / 255.0
            self._weight = mask, new
        background, weight = self._sources[id(source)][1], self._weight[1]
        to_picture = np.array(matrix, np.float64).reshape(2, 3)
        warped = self._warp(image[0].cpu().numpy(), to_picture, (width, height))
        blended = weight * warped + (1 - weight) * background
        return torch.from_numpy(np.clip(blended, 0, 255).astype(np.uint8))[None]


def to_host(device: torch.device) -> list[Provider]:
    """The original's way, and those on the device with the picture copied to the host; compilers left out."""

    def copied(provider: Provider) -> Callable[[], Candidate]:
        def build() -> Candidate:
            candidate = provider.build()
            call = candidate.call
            return dataclasses.replace(candidate, call=lambda *inputs: call(*inputs).cpu())

        return build

    on_device = single_precision("paste_back", Published(), device)
    return [
        Provider("original-opencv", "fp32", lambda: Candidate(OpenCV()), eager_pytorch=True),
        *(dataclasses.replace(one, build=copied(one)) for one in on_device if not one.name.startswith("compile-")),
    ]


def reference(image: Tensor, source: Tensor, mask: Tensor, matrix: Any, box: Any, *_: Any) -> Tensor:
    """The exact picture, whoever writes how much of it."""
    return ref.paste_back(image, source, mask, matrix, box)


def subjects(context: Context) -> Iterator[Subject]:
    """Each size of picture: into a new one, and into one that holds the source already."""
    for batch in context.batches:
        # The larger ones take a CPU seconds each and show there what the first one shows.
        for height, width, side in PICTURES if context.device.type == "cuda" else PICTURES[:1]:
            crop = crop_from_square(Square((0.4 * width, 0.45 * height), side, ANGLE), FACE)
            for copies in (True, False):
                yield _subject(context, crop, (height, width), batch, copies)
    height, width, side = PICTURES[1 if context.device.type == "cuda" else 0]
    crop = crop_from_square(Square((0.4 * width, 0.45 * height), side, ANGLE), FACE)
    whole = _subject(context, crop, (height, width), 1, True)
    yield dataclasses.replace(
        whole,
        shape=f"{whole.shape}, to the host",
        providers=to_host(context.device),
        kernel=False,
        compared=lambda picture: picture.cpu(),
    )


def _subject(context: Context, crop: Crop, size: tuple[int, int], batch: int, copies: bool) -> Subject:
    matrix = tuple(crop.M_c2o[:2].flatten().tolist())
    box, tile = ops.warp_mask(feathered_mask(FACE).to(context.device), matrix, size)

    def inputs(seed: int) -> tuple[Any, ...]:
        generator = torch.Generator(context.device).manual_seed(seed)

        def picture(*shape: int) -> Tensor:
            return torch.randint(0, 256, (*shape, 3), generator=generator, device=context.device, dtype=torch.uint8)

        source = picture(*size)
        out = None if copies else source.expand(batch, *source.shape).clone()
        return picture(batch, FACE, FACE), source, tile, matrix, box, copies, out

    pasted = box[2] * box[3]
    pixels = size[0] * size[1] if copies else pasted
    return Subject(
        level="ops",
        name="paste_back",
        shape=f"{math.dist(crop.corners[0], crop.corners[1]):.0f} pixels of {size[1]}x{size[0]}"
        + (", with its copy" if copies else ""),
        batch=batch,
        inputs=inputs,
        reference=reference,
        providers=single_precision("paste_back", Published(), context.device),
        fixed_bytes=3 * pixels + pasted + 3 * batch * (pixels + FACE * FACE),
        flops=batch * pasted * (8 + 3 * 12),  # positions; per colour three interpolations and the blend
        floor=EIGHT_BIT_FLOOR,
        kernel=True,
    )
