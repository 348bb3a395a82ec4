"""x_d against the original's steps spelled out keypoint by keypoint in float64."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lpkernels.animate.motion import Motion, source_keypoints
from lpkernels.animate.retarget import REGIONS, MotionOptions, convex_hull_multiplier, drive
from lpkernels.errors import InputError, LpkernelsError
from tests.animate.motions import LinearRetargeter, random_motion

F64 = torch.float64
EYES, LIPS = {11, 13, 15, 16, 18}, {6, 12, 14, 17, 19, 20}
EXPRESSION = {(k, axis) for k in (1, 2, 6, *range(11, 21)) for axis in range(3)}
EXPRESSION |= {(3, 1), (4, 1), (5, 2), (8, 2), (9, 1), (9, 2)}


def motions(seed: int = 0, dtype: torch.dtype = F64) -> tuple[Motion, Tensor, Motion, Motion]:
    """source, x_s, driving, first; batch 1."""
    source, driving, first = (random_motion(1, seed=seed + i, dtype=dtype) for i in range(3))
    return source, source_keypoints(source), driving, first


def plain(**options: Any) -> MotionOptions:
    return MotionOptions(stitching=False, **options)


def takes(region: str, relative: bool, k: int, axis: int) -> bool:
    """Whether the region takes this coordinate of the expression from the driving motion."""
    if region in ("all", "exp"):
        return relative or (k, axis) in EXPRESSION
    return k in {"lip": LIPS, "eyes": EYES, "pose": set()}[region]


def expected_keypoints(source: Motion, driving: Motion, first: Motion, relative: bool, region: str) -> np.ndarray:
    s, d, f = (
        {name: getattr(m, name)[0].numpy() for name in ("exp", "R", "t", "scale")} for m in (source, driving, first)
    )
    assert source.kp is not None
    kp = source.kp[0].numpy()
    R, t, scale, exp = s["R"], s["t"].copy(), s["scale"], s["exp"].copy()
    if region in ("all", "pose"):
        R = d["R"] @ f["R"].T @ s["R"] if relative else d["R"]
        t = s["t"] + d["t"] - f["t"] if relative else d["t"].copy()
    if region == "all" and relative:
        scale = s["scale"] * d["scale"] / f["scale"]
    for k, axis in itertools.product(range(21), range(3)):
        if takes(region, relative, k, axis):
            change = d["exp"][k, axis] - f["exp"][k, axis]
            exp[k, axis] = s["exp"][k, axis] + change if relative else d["exp"][k, axis]
    t[2] = 0
    return scale * (kp @ R + exp) + t


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("region", REGIONS)
def test_regions(region: str, relative: bool) -> None:
    source, x_s, driving, first = motions()
    x_d = drive(LinearRetargeter(), source, x_s, driving, first, plain(relative=relative, region=region))
    expected = expected_keypoints(source, driving, first, relative, region)
    np.testing.assert_allclose(x_d[0].numpy(), expected, atol=1e-13)
    assert not np.allclose(expected, x_s[0].numpy(), atol=1e-3)


@pytest.mark.parametrize("region", REGIONS)
def test_first_frame_changes_nothing_in_relative_motion(region: str) -> None:
    source, x_s, driving, _ = motions(dtype=torch.float32)
    x_d = drive(LinearRetargeter(), source, x_s, driving, driving, plain(region=region))
    torch.testing.assert_close(x_d, x_s, atol=1e-6, rtol=0)


@pytest.mark.parametrize("region", REGIONS)
def test_own_motion_changes_nothing_in_absolute_motion(region: str) -> None:
    source, x_s, _, first = motions()
    x_d = drive(LinearRetargeter(), source, x_s, source, first, plain(relative=False, region=region))
    torch.testing.assert_close(x_d, x_s)


def test_stitching_adds_offsets_and_shift() -> None:
    source, x_s, driving, first = motions()
    model = LinearRetargeter(dtype=F64)
    before = drive(model, source, x_s, driving, first, plain())
    assert model.seen == {}
    after = drive(model, source, x_s, driving, first, MotionOptions())
    features = torch.cat([x_s.flatten(), before.flatten()])
    torch.testing.assert_close(model.seen["stitch"][0], features)
    delta = features @ model.weights["stitch"]
    expected = before[0] + delta[:63].view(21, 3)
    expected[:, :2] += delta[63:]
    torch.testing.assert_close(after[0], expected)


@pytest.mark.parametrize("relative", [True, False])
def test_retargeting_before_stitching(relative: bool) -> None:
    source, x_s, driving, first = motions()
    model = LinearRetargeter(dtype=F64)
    options = MotionOptions(
        relative=relative,
        eye_retargeting=True,
        lip_retargeting=True,
        source_eye_ratio=(0.3, 0.4),
        source_lip_ratio=0.1,
    )
    x_d = drive(model, source, x_s, driving, first, options, eye_ratio=0.25, lip_ratio=0.5)
    flat = x_s.flatten()
    eye, lip = torch.cat([flat, flat.new_tensor([0.3, 0.4, 0.25])]), torch.cat([flat, flat.new_tensor([0.1, 0.5])])
    torch.testing.assert_close(model.seen["eye"][0], eye)
    torch.testing.assert_close(model.seen["lip"][0], lip)
    # Relative motion starts again from x_s, absolute motion keeps the driven keypoints.
    base = x_s if relative else drive(model, source, x_s, driving, first, plain(relative=False))
    opened = base[0] + (eye @ model.weights["eye"]).view(21, 3) + (lip @ model.weights["lip"]).view(21, 3)
    delta = torch.cat([flat, opened.flatten()]) @ model.weights["stitch"]
    expected = opened + delta[:63].view(21, 3)
    expected[:, :2] += delta[63:]
    torch.testing.assert_close(x_d[0], expected)


@pytest.mark.parametrize("part", ["eye", "lip"])
def test_one_retargeting_leaves_the_other_alone(part: str) -> None:
    source, x_s, driving, first = motions()
    model = LinearRetargeter(dtype=F64)
    options = plain(**{f"{part}_retargeting": True, "source_eye_ratio": (0.3, 0.3), "source_lip_ratio": 0.1})
    by_number = drive(model, source, x_s, driving, first, options, eye_ratio=0.2, lip_ratio=0.2)
    assert set(model.seen) == {part}
    ratio = torch.full((1, 1), 0.2, dtype=F64)
    by_tensor = drive(model, source, x_s, driving, first, options, eye_ratio=ratio, lip_ratio=ratio)
    assert torch.equal(by_number, by_tensor)


@pytest.mark.parametrize("multiplier", [0.0, 0.5, 2.0])
def test_multiplier_comes_last(multiplier: float) -> None:
    source, x_s, driving, first = motions()
    model = LinearRetargeter(dtype=F64)
    once = drive(model, source, x_s, driving, first, MotionOptions())
    x_d = drive(model, source, x_s, driving, first, MotionOptions(driving_multiplier=multiplier))
    torch.testing.assert_close(x_d, x_s + multiplier * (once - x_s))


def test_expression_friendly_scales_by_the_hulls() -> None:
    source, x_s, driving, first = motions()
    options = plain(driving_option="expression-friendly")
    # Doubled keypoints have eight times the volume; the first frame's are the source's own.
    larger = 2 * x_s
    multiplier = convex_hull_multiplier(source, larger, first, options)
    assert multiplier.shape == (1, 1, 1)
    torch.testing.assert_close(multiplier, torch.full((1, 1, 1), 8**0.5, dtype=F64))
    pose_friendly = drive(LinearRetargeter(), source, x_s, driving, first, plain())
    expected = larger + (pose_friendly - x_s) * 8**0.5
    torch.testing.assert_close(drive(LinearRetargeter(), source, larger, driving, first, options), expected)
    given = drive(LinearRetargeter(), source, larger, driving, first, options, motion_multiplier=multiplier)
    torch.testing.assert_close(given, expected)
    halved = drive(LinearRetargeter(), source, larger, driving, first, options, motion_multiplier=8**0.5 / 2)
    torch.testing.assert_close(halved - larger, (expected - larger) / 2)


def test_hull_of_a_cube() -> None:
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))[None]
    motion = Motion(corners, torch.zeros(1, 8, 3), torch.eye(3)[None], torch.zeros(1, 3), torch.full((1, 1), 0.5))
    multiplier = convex_hull_multiplier(motion, corners, motion, MotionOptions())
    torch.testing.assert_close(multiplier.flatten(), torch.tensor([8**0.5]))


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "that are not finite"), (0.0, "in one plane")])
def test_keypoints_without_volume(value: float, words: str) -> None:
    source, x_s, _, first = motions()
    x_s = x_s.clone()
    x_s[..., 2] = value
    with pytest.raises(LpkernelsError, match=f"x_s's keypoints, got keypoints {words}"):
        convex_hull_multiplier(source, x_s, first, plain(driving_option="expression-friendly"))


@pytest.mark.parametrize("options", [MotionOptions(), MotionOptions(relative=False, region="lip")])
@pytest.mark.parametrize("source_batch", [1, 3])
def test_batch_equals_single_frames(options: MotionOptions, source_batch: int) -> None:
    source, driving = random_motion(source_batch, seed=1, dtype=F64), random_motion(3, seed=2, dtype=F64)
    first = driving[0]
    x_s, model = source_keypoints(source), LinearRetargeter(dtype=F64)
    together = drive(model, source, x_s, driving, first, options)
    assert together.shape == (3, 21, 3)
    for i in range(3):
        own = i if source_batch == 3 else 0
        alone = drive(model, source[own], x_s[own : own + 1], driving[i], first, options)
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("relative", [True, False])
def test_drive_waits_for_no_device(region: str, relative: bool) -> None:
    source, driving, first = (random_motion(1).to("meta") for _ in range(3))
    options = MotionOptions(
        relative=relative,
        region=region,
        eye_retargeting=True,
        lip_retargeting=True,
        source_eye_ratio=(0.3, 0.3),
        source_lip_ratio=0.1,
    )
    # A meta tensor has no values: reading one would raise.
    x_s, model = source_keypoints(source), LinearRetargeter(device="meta")
    assert drive(model, source, x_s, driving, first, options, 0.2, 0.2).shape == (1, 21, 3)


@pytest.mark.gpu
def test_drive_in_a_cuda_graph() -> None:
    source, x_s, driving, first = motions(dtype=torch.float32)
    options = MotionOptions(relative=False, region="exp")
    expected = drive(LinearRetargeter(), source, x_s, driving, first, options)
    model, source, x_s, first = LinearRetargeter(device="cuda"), source.to("cuda"), x_s.cuda(), first.to("cuda")
    held = random_motion(1, seed=9).to("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        drive(model, source, x_s, held, first, options)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_d = drive(model, source, x_s, held, first, options)
    for name in ("exp", "R", "t", "scale"):
        getattr(held, name).copy_(getattr(driving, name))
    graph.replay()
    torch.testing.assert_close(x_d.cpu(), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"region": "nose"}, "region must be one of all, exp, pose, lip, eyes; got 'nose'"),
        ({"driving_option": "fast"}, "driving_option must be one of .*; got 'fast'"),
        ({"driving_option": "expression-friendly", "relative": False}, "needs relative motion"),
        ({"driving_multiplier": float("nan")}, "driving_multiplier must be a number of 0 or more, got nan"),
        ({"driving_multiplier": -1.0}, "driving_multiplier"),
        ({"driving_multiplier": "2"}, "driving_multiplier must be a number of 0 or more, got '2'"),
        ({"driving_multiplier": True}, "driving_multiplier"),
        ({"eye_retargeting": True}, "eye_retargeting needs source_eye_ratio"),
        ({"lip_retargeting": True}, "lip_retargeting needs source_lip_ratio"),
        ({"source_eye_ratio": 0.3}, r"source_eye_ratio must be \(left, right\), got 0.3"),
        ({"source_eye_ratio": (0.3,)}, "source_eye_ratio"),
        ({"source_eye_ratio": (0.3, float("inf"))}, "source_eye_ratio must be a number of 0 or more, got inf"),
        ({"source_lip_ratio": -0.1}, "source_lip_ratio must be a number"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        MotionOptions(**options)


def test_numpy_numbers_are_numbers() -> None:
    assert MotionOptions(driving_multiplier=np.float32(0.5)).driving_multiplier == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["eye", "lip"])
def test_retargeting_needs_the_frames_ratio(part: str) -> None:
    source, x_s, driving, first = motions()
    options = MotionOptions(**{f"{part}_retargeting": True, "source_eye_ratio": (0.3, 0.3), "source_lip_ratio": 0.1})
    with pytest.raises(InputError, match=f"{part}_retargeting needs {part}_ratio with every driving frame"):
        drive(LinearRetargeter(), source, x_s, driving, first, options)
    with pytest.raises(InputError, match=f"{part}_ratio must be a number of 0 or more, got nan"):
        drive(LinearRetargeter(), source, x_s, driving, first, options, **{f"{part}_ratio": float("nan")})


def test_motions_that_do_not_fit() -> None:
    source, x_s, driving, first = motions()
    model, options = LinearRetargeter(), plain()
    with pytest.raises(ValueError, match=r"driving.exp must have shape \(B, 21, 3\), got \(1, 20, 3\)"):
        drive(model, source, x_s, random_motion(1, 20), first, options)
    with pytest.raises(ValueError, match=r"first\.exp"):
        drive(model, source, x_s, driving, random_motion(2, dtype=F64), options)
    with pytest.raises(ValueError, match="x_s must have shape"):
        drive(model, source, x_s[:, :20], driving, first, options)
    with pytest.raises(ValueError, match="source must have canonical keypoints"):
        drive(model, dataclasses.replace(source, kp=None), x_s, driving, first, options)


def test_index_lists_are_for_21_keypoints() -> None:
    source, driving = random_motion(1, 8), random_motion(1, 8, seed=1)
    x_s, model = source_keypoints(source), LinearRetargeter(8)
    assert drive(model, source, x_s, driving, driving, MotionOptions()).shape == (1, 8, 3)
    with pytest.raises(ValueError, match="region 'lip' with relative=True is defined for 21 keypoints, got 8"):
        drive(model, source, x_s, driving, driving, MotionOptions(region="lip"))
