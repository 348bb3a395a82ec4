"""The keypoint path in two ops against ``animate.retarget.drive`` in float64, in every option."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lpkernels import ops
from lpkernels.animate.motion import Motion, refine_motion, source_keypoints
from lpkernels.animate.retarget import (
    REGIONS,
    MotionOptions,
    _taken_coordinates,
    convex_hull_multiplier,
    drive,
)
from lpkernels.errors import InputError
from lpkernels.fused.stitching import KeypointPath, SourceKeypoints, pack_heads
from lpkernels.models.config import StitchingRetargetingModuleConfig
from lpkernels.models.stitching_retargeting_network import make_stitching_retargeting_module
from tests.ops.contract import ULPS, check_compile, relative_error

RATIOS = {"source_eye_ratio": (0.3, 0.4), "source_lip_ratio": 0.1}


def make_module() -> nn.ModuleDict:
    torch.manual_seed(7)
    return make_stitching_retargeting_module(StitchingRetargetingModuleConfig()).eval().requires_grad_(False)


class Retargeter:
    """The baseline's MLPs as ``drive`` calls them, in float64 or float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        module = make_module().to(dtype)
        self.stitch, self.retarget_eye, self.retarget_lip = (module[name] for name in ("stitching", "eye", "lip"))


def make_heads(batch: int, seed: int) -> dict[str, Tensor]:
    """Raw heads in a trained model's range."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(width: int, scale: float, mean: float = 0.0) -> Tensor:
        return mean + scale * torch.randn(batch, width, generator=numbers)

    angles = {name: normal(66, 3) for name in ("pitch", "yaw", "roll")}
    return {
        **angles,
        "t": normal(3, 0.1),
        "exp": normal(63, 0.03),
        "scale": normal(1, 0.1, 1.3),
        "kp": normal(63, 0.3),
    }


def to(motion: Motion, dtype: torch.dtype) -> Motion:
    parts = (motion.kp, motion.exp, motion.R, motion.t, motion.scale)
    return Motion(*(part if part is None else part.to(dtype) for part in parts))  # type: ignore[arg-type]


def packed(motion: Motion) -> Tensor:
    return ops.pack_motion(motion.exp, motion.R, motion.t, motion.scale)


class Scene:
    """A source, a first and a driving frame; ``drive``'s answers and the path's."""

    def __init__(self, batch: int = 1, sources: int = 1, device: str = "cpu") -> None:
        self.heads = make_heads(batch, 3)
        self.source, self.first = (refine_motion(make_heads(sources, seed)) for seed in (1, 2))
        self.x_s = source_keypoints(self.source)
        self.device = device

    def driven(self, dtype: torch.dtype, options: MotionOptions, *more: Any) -> Tensor:
        heads = {name: head.to(dtype) for name, head in self.heads.items()}
        source, first = to(self.source, dtype), to(self.first, dtype)
        more = tuple(item.to(dtype) if isinstance(item, Tensor) else item for item in more)
        model: Any = Retargeter(dtype)
        return drive(model, source, self.x_s.to(dtype), refine_motion(heads), first, options, *more)

    def path(self, options: MotionOptions) -> KeypointPath:
        return make_path(options).to(self.device)

    def inputs(self) -> tuple[Tensor, SourceKeypoints, Tensor]:
        assert self.source.kp is not None
        parts = (self.source.kp, self.x_s, packed(self.source))
        source = SourceKeypoints(*(part.to(self.device) for part in parts))
        return pack_heads(self.heads).to(self.device), source, packed(self.first).to(self.device)

    def check(self, options: MotionOptions, *more: Any) -> None:
        """At most 1.5 times the error of ``drive`` in float32."""
        truth = self.driven(torch.float64, options, *more)
        own = relative_error(self.driven(torch.float32, options, *more), truth)
        on_device = [item.to(self.device) if isinstance(item, Tensor) else item for item in more]
        x_d, _ = self.path(options)(*self.inputs(), *on_device)
        assert x_d.shape == truth.shape
        assert relative_error(x_d, truth) <= 1.5 * own + ULPS[torch.float32]


def make_path(options: MotionOptions) -> KeypointPath:
    """The path that does what ``options`` say."""
    return KeypointPath(
        make_module(),
        relative=options.relative,
        taken=_taken_coordinates(options.region, options.relative, 21, torch.device("cpu")),
        pose=options.region in ("all", "pose"),
        scale=options.region == "all",
        driving_multiplier=options.driving_multiplier,
        stitching=options.stitching,
        source_eye_ratio=options.source_eye_ratio if options.eye_retargeting else None,
        source_lip_ratio=options.source_lip_ratio if options.lip_retargeting else None,
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("region", REGIONS)
def test_every_option(region: str, relative: bool, device: str) -> None:
    scene = Scene(device=device)
    for stitching, eye, lip in itertools.product((True, False), repeat=3):
        options = MotionOptions(
            relative=relative,
            region=region,
            driving_multiplier=0.7 if eye == lip else 1.0,
            stitching=stitching,
            eye_retargeting=eye,
            lip_retargeting=lip,
            **RATIOS,  # type: ignore[arg-type]
        )
        scene.check(options, 0.25, 0.5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("region", REGIONS)
def test_expression_friendly(region: str, device: str) -> None:
    scene = Scene(device=device)
    options = MotionOptions(region=region, driving_option="expression-friendly", driving_multiplier=1.3)
    multiplier = convex_hull_multiplier(scene.source, scene.x_s, scene.first, options)
    scene.check(options, None, None, multiplier)
    scene.check(options, None, None, float(multiplier))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("batch", "sources"), [(2, 1), (3, 3)])
@pytest.mark.parametrize("relative", [True, False])
def test_batches(batch: int, sources: int, relative: bool, device: str) -> None:
    scene = Scene(batch, sources, device)
    scene.check(MotionOptions(relative=relative))
    options = MotionOptions(relative=relative, eye_retargeting=True, lip_retargeting=True, **RATIOS)  # type: ignore[arg-type]
    scene.check(options, torch.linspace(0.1, 0.4, batch)[:, None], 0.5)
    scene.check(options, torch.tensor(0.2), torch.rand(batch, 1))


def test_the_driving_motion_is_what_the_heads_mean(device: str) -> None:
    scene = Scene(batch=2, device=device)
    path = scene.path(MotionOptions())
    heads, source, first = scene.inputs()
    x_d, motion = path(heads, source, first)
    read, expected = Motion(None, *ops.unpack_motion(motion.cpu())), refine_motion(scene.heads)
    for name in ("exp", "t", "scale"):
        assert torch.equal(getattr(read, name), getattr(expected, name))
    torch.testing.assert_close(read.R, expected.R)
    assert torch.equal(path.from_motion(motion, source, first)[0], x_d)


def test_the_first_frame_moves_the_shoulders_alone(device: str) -> None:
    scene = Scene(device=device)
    heads, source, _ = scene.inputs()
    x_d, motion = scene.path(MotionOptions(stitching=False))(heads, source)
    torch.testing.assert_close(x_d.cpu(), scene.x_s, atol=1e-6, rtol=0)
    stitched = scene.path(MotionOptions())
    assert torch.equal(stitched(heads, source)[0], stitched(heads, source, motion)[0])


def test_two_kernels_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("keypoint_transform", "stitch_mlp"):
        op = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *args, op=op, name=name: called.append(name) or op(*args))
    scene = Scene()
    scene.path(MotionOptions())(*scene.inputs())
    assert called == ["keypoint_transform", "stitch_mlp"]


@pytest.mark.parametrize("relative", [True, False])
def test_nothing_waits_for_the_device(relative: bool) -> None:
    scene = Scene(device="meta")
    options = MotionOptions(relative=relative, region="lip", eye_retargeting=True, lip_retargeting=True, **RATIOS)  # type: ignore[arg-type]
    # A meta tensor has no values: reading one would raise.
    x_d, motion = scene.path(options)(*scene.inputs(), 0.2, torch.zeros(1, 1, device="meta"))
    assert (x_d.shape, motion.shape) == ((1, 21, 3), (1, 76))


def test_compile(device: str) -> None:
    scene = Scene(device=device)
    path = scene.path(MotionOptions(lip_retargeting=True, **RATIOS))  # type: ignore[arg-type]
    heads, source, first = scene.inputs()
    check_compile(lambda heads, first: path(heads, source, first, lip_ratio=0.5), [heads, first])


@pytest.mark.parametrize("part", ["eye", "lip"])
def test_retargeting_needs_the_frames_ratio(part: str) -> None:
    scene = Scene()
    path = scene.path(MotionOptions(**{f"{part}_retargeting": True}, **RATIOS))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{part} retargeting needs {part}_ratio with every driving frame"):
        path(*scene.inputs())


def test_the_path_keeps_no_parameters_of_its_own() -> None:
    path = make_path(MotionOptions(region="lip"))
    assert path.state_dict() == {}
    assert list(path.parameters()) == []
    assert path.to("meta").taken.device.type == "meta"  # type: ignore[union-attr]


def test_heads_are_packed_in_the_networks_order() -> None:
    heads = make_heads(2, 0)
    row = pack_heads(dict(reversed(heads.items())))
    assert row.shape == (2, 328)
    assert torch.equal(row[:, 201:264], heads["exp"])
    assert torch.equal(row[:, 265:], heads["kp"])


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    scene = Scene(device="cuda")
    options = MotionOptions(eye_retargeting=True, **RATIOS)  # type: ignore[arg-type]
    path = scene.path(options)
    heads, source, first = scene.inputs()
    expected, _ = path(heads, source, first, 0.25)
    held, kept = pack_heads(make_heads(1, 9)).cuda(), torch.zeros_like(first)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        path(held, source, kept, 0.25)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_d, _ = path(held, source, kept, 0.25)
    held.copy_(heads)
    kept.copy_(first)
    graph.replay()
    torch.testing.assert_close(x_d, expected, rtol=0, atol=0)
