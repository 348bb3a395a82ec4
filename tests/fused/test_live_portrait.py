"""The fused model behind the baseline's interface: answers, refusals, batches, the finite check, its description."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lpkernels
from lpkernels import ops, trace
from lpkernels.errors import InputError, LpkernelsError
from lpkernels.fused import FusedLivePortrait, build
from lpkernels.models import LivePortrait, LivePortraitConfig
from lpkernels.models.pixels import to_uint8
from tests.fused.networks import feature, keypoints, relative_error, state_of, tiny, volume
from tests.golden.load import compare, load_golden, picture
from tests.ops import contract

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def fused() -> FusedLivePortrait:
    """Change nothing in it."""
    return lpkernels.optimize(tiny(), "fp32")


def images(batch: int) -> Tensor:
    return torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def frames(batch: int, height: int = 64, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)


def answers(model: LivePortrait | FusedLivePortrait, batch: int) -> dict[str, Tensor]:
    """Every float method's answer to one input, by name."""
    feature_3d, (kp_source, kp_driving) = volume(batch), keypoints(batch)
    warped = {f"warp.{key}": value for key, value in model.warp(feature_3d, kp_source, kp_driving).items()}
    features = torch.randn(batch, 126, generator=torch.Generator().manual_seed(6))
    return {
        "extract_feature_3d": model.extract_feature_3d(images(batch)),
        **{f"extract_motion.{key}": value for key, value in model.extract_motion(images(batch)).items()},
        "heads": model.heads(frames(batch)),
        **{key: value for key, value in warped.items() if value is not None},
        "decode": model.decode(feature(batch)),
        "warp_decode": model.warp_decode(feature_3d, kp_source, kp_driving),
        "stitch": model.stitch(features),
        "retarget_eye": model.retarget_eye(features[:, :66]),
        "retarget_lip": model.retarget_lip(features[:, :65]),
    }


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("batch", [1, 2])
def test_answers_are_the_baselines(fused: FusedLivePortrait, batch: int) -> None:
    came, expected = answers(fused, batch), answers(tiny(), batch)
    assert list(came) == list(expected)
    for name, value in came.items():
        assert value.dtype == torch.float32
        assert value.is_contiguous()
        assert relative_error(value, expected[name]) <= TOLERANCE, name


def test_heads_are_those_of_the_picture_side_by_side() -> None:
    """Of the plain model: in the order of ``extract_motion``, and of frames of any size."""
    model, picture = tiny(), frames(2)
    heads = model.extract_motion(picture.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(model.heads(picture), torch.cat(list(heads.values()), dim=1))
    assert list(heads) == ["pitch", "yaw", "roll", "t", "exp", "scale", "kp"]


def test_heads_of_frames_of_another_size(fused: FusedLivePortrait) -> None:
    picture = frames(2, 50, 81)
    assert relative_error(fused.heads(picture), tiny().heads(picture)) <= TOLERANCE


@pytest.mark.parametrize("name", ["tiny", pytest.param("full", marks=pytest.mark.slow)])
def test_frames_are_the_originals(name: str) -> None:
    """Against the stored answers of the original program, held to what the baseline is held to."""
    _, model, arrays = load_golden(name)
    fused = lpkernels.optimize(model, "fp32")
    image = picture("source", arrays)
    for head, value in fused.extract_motion(image).items():
        compare(f"motion.{head}", value, arrays)
    feature_3d = fused.extract_feature_3d(image)
    compare("feature_3d", feature_3d, arrays)
    for frame in ("frame0", "frame1"):
        x_s, x_d = (torch.from_numpy(arrays[key]) for key in ("x_s", f"{frame}.x_d"))
        compare(f"{frame}.out", fused.warp_decode(feature_3d, x_s, x_d), arrays)


def levels_apart(came: Tensor, expected: Tensor) -> int:
    assert came.dtype == expected.dtype == torch.uint8
    assert came.shape == expected.shape
    return int((came.int() - expected.int()).abs().max())


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("sources", [1, 2])
def test_render(fused: FusedLivePortrait, sources: int) -> None:
    """Two poses of one source, or of two: the bytes of ``warp_decode``, in both models."""
    feature_3d, (kp_source, kp_driving) = volume(sources), keypoints(2)
    arguments = feature_3d.expand(2, -1, -1, -1, -1), kp_source[:sources].expand(2, -1, -1), kp_driving
    expected = to_uint8(tiny().warp_decode(*arguments))
    for model in (tiny(), fused):
        source = model.prepare_warp(feature_3d, kp_source[:sources])
        assert source.batch == sources
        assert levels_apart(model.render(source, kp_driving), expected) <= 1
        assert levels_apart(model.render(source.expand(2), kp_driving), expected) <= 1


def test_a_source_is_the_callers(fused: FusedLivePortrait) -> None:
    """What was prepared does not change with what it was made of, and can be overwritten in place."""
    for model in (tiny(), fused):
        feature_3d, (kp_source, kp_driving) = volume(), keypoints()
        source = model.prepare_warp(feature_3d, kp_source)
        expected = model.render(source, kp_driving)
        feature_3d.zero_()
        kp_source.zero_()
        assert torch.equal(model.render(source, kp_driving), expected)
        other = model.prepare_warp(volume(seed=7), 0.9 * keypoints()[0])
        source.copy_(other)
        assert torch.equal(model.render(source, kp_driving), model.render(other, kp_driving))


def test_the_baseline_stays_as_it_is() -> None:
    before = state_of(tiny())
    model = lpkernels.optimize(tiny(), "bf16")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.zero_()
    after = tiny().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_precisions() -> None:
    for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = lpkernels.optimize(tiny(), precision)
        assert model.dtype == dtype
        assert model.warping_module.third.weight.dtype == dtype
        assert model.warping_module.third.bias.dtype == torch.float32
        assert model.device == tiny().device
        assert model.config is tiny().config
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_half_on_the_cpu() -> None:
    """The references take half, so that a program can be tried where there is no GPU."""
    kp_source, kp_driving = keypoints()
    for precision, tolerance in (("fp16", 0.02), ("bf16", 0.1)):
        model = lpkernels.optimize(tiny(), precision)
        image = model.warp_decode(volume(side=8), kp_source, kp_driving)
        assert image.dtype == torch.float32
        assert relative_error(image, tiny().warp_decode(volume(side=8), kp_source, kp_driving)) < tolerance


def test_an_outer_autocast_does_not_reach_in(fused: FusedLivePortrait) -> None:
    feature_3d, (kp_source, kp_driving) = volume(), keypoints()
    expected = fused.warp_decode(feature_3d, kp_source, kp_driving)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused.warp_decode(feature_3d, kp_source, kp_driving), expected)


def test_networks_are_traced(fused: FusedLivePortrait) -> None:
    with trace.record() as recorder:
        fused.render(fused.prepare_warp(volume(), keypoints()[0]), keypoints()[1])
        fused.heads(frames(1))
    assert [row.name for row in recorder.rows() if row.category == "network"] == [
        "warping_module",
        "spade_generator",
        "motion_extractor",
    ]


def test_the_finite_check_names_the_layer() -> None:
    model = lpkernels.optimize(tiny(), "fp32")
    feature_3d, (kp_source, kp_driving) = volume(), keypoints()
    source = model.prepare_warp(feature_3d, kp_source)
    model.check_finite()
    model.render(source, kp_driving)
    model.spade_generator.middle.bias[3, 0] = float("inf")
    with pytest.raises(LpkernelsError, match=r"spade_generator\.middle \(SpadeBlocks\) is the first layer"):
        model.render(source, kp_driving)
    model.check_finite(False)
    model.render(source, kp_driving)


def test_description(fused: FusedLivePortrait) -> None:
    text = fused.describe()
    lines = text.splitlines()
    middle = [line for line in lines if "spade_generator.middle" in line]
    assert len(middle) == 1
    assert middle[0].split()[1:3] == ["spade_blocks", ops.registry()["spade_blocks"].choose("cpu").backend]
    assert "cuda: needs cuda tensors" in middle[0]
    assert any("warping_module.hourglass.up_blocks.* (3)" in line for line in lines)
    for name in ("flow_warp", "sparse_motion", "mask_conv3d", "occlusion_head", "conv_img", "upsample_conv"):
        assert any(name in line for line in lines), name
    with ops.use_backend("triton"):
        assert "none" in fused.describe()


def test_a_frame_on_hopper_takes_cuda_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all of them could run here: which one refuses, for the published sizes, one picture, half precision?"""
    for op in ops.registry().values():
        if cuda := op.backends.get("cuda"):
            monkeypatch.setitem(op.backends, "cuda", dataclasses.replace(cuda, why_not=lambda device_type: None))
    with torch.device("meta"):
        baseline = LivePortrait(LivePortraitConfig.full())
    lines = lpkernels.optimize(baseline, "fp16").describe().splitlines()
    others = [line for line in lines if re.split(r"  +", line)[2] != "cuda"]
    assert len(lines) > 30
    assert others == []


def test_networks_can_be_built_alone() -> None:
    """With the baseline's arguments and answers."""
    model, (kp_source, kp_driving) = tiny(), keypoints()
    with torch.no_grad():
        expected = model.warping_module(volume(), kp_driving, kp_source)
        came = build(model.warping_module, "fp32")(volume(), kp_driving, kp_source)
        assert list(came) == list(expected)
        assert all(relative_error(came[name], expected[name]) <= TOLERANCE for name in came)
        decoded = build(model.spade_generator, "fp32")(feature())
        assert relative_error(decoded, model.spade_generator(feature())) <= TOLERANCE
        stitching = model.stitching_retargeting_module["stitching"]
        assert torch.equal(build(stitching, "fp16")(torch.ones(1, 126)), stitching(torch.ones(1, 126)))
        heads, truth = build(model.motion_extractor, "fp32")(images(1)), model.motion_extractor(images(1))
        assert list(heads) == list(truth)
        assert all(relative_error(heads[name], truth[name]) <= TOLERANCE for name in truth)
        extracted = build(model.appearance_feature_extractor, "fp32")(images(1))
        assert relative_error(extracted, model.appearance_feature_extractor(images(1))) <= TOLERANCE


KP = torch.zeros(2, 21, 3)
BAD_INPUTS: list[tuple[Callable[[FusedLivePortrait | LivePortrait], object], type[Exception], str]] = [
    (lambda m: m.heads(torch.zeros(1, 64, 64, 3)), TypeError, "frames must have dtype uint8, got float32"),
    (
        lambda m: m.heads(torch.zeros(64, 64, 3, dtype=torch.uint8)),
        ValueError,
        r"frames must have shape \(B, H, W, 3\)",
    ),
    (
        lambda m: m.heads(torch.zeros(1, 64, 64, 3, dtype=torch.uint8, device="meta")),
        ValueError,
        "frames must be on the model's device, cpu; got meta",
    ),
    (lambda m: m.prepare_warp(volume(), KP), ValueError, r"kp_source must have shape \(1, 21, 3\)"),
    (lambda m: m.prepare_warp(volume(side=12), KP), ValueError, "multiples of 8"),
    (lambda m: m.render(m.prepare_warp(volume(), KP[:1]), KP[0]), ValueError, r"kp_driving must have shape"),
    (
        lambda m: m.render(m.prepare_warp(volume(2), KP), KP[:1]),
        ValueError,
        "source must have batch 1 or 1, that of kp_driving; got 2",
    ),
    (lambda m: m.warp(volume(2), KP[:1], KP), ValueError, r"kp_source must have shape \(2, 21, 3\)"),
    (lambda m: m.decode(torch.zeros(1, 63, 16, 16)), ValueError, r"feature must have shape \(B, 64, h, w\)"),
    (lambda m: m.stitch(torch.zeros(1, 125)), ValueError, r"features must have shape \(B, 126\), got \(1, 125\)"),
]


@pytest.mark.parametrize("case", range(len(BAD_INPUTS)))
def test_both_models_refuse_alike(fused: FusedLivePortrait, case: int) -> None:
    call, error, message = BAD_INPUTS[case]
    for model in (tiny(), fused):
        with pytest.raises(error, match=message):
            call(model)


def test_a_source_without_keypoints_is_refused(fused: FusedLivePortrait) -> None:
    source = dataclasses.replace(fused.prepare_warp(volume(), KP[:1]), kp_source=None)
    with pytest.raises(ValueError, match="source must come from prepare_warp"):
        fused.render(source, KP[:1])


def test_what_cannot_be_optimized_is_named(fused: FusedLivePortrait) -> None:
    with pytest.raises(InputError, match="precision must be one of fp16, bf16, fp32, got 'int8'"):
        lpkernels.optimize(tiny(), "int8")
    with pytest.raises(InputError, match=r"model must be a lpkernels\.LivePortrait, got FusedLivePortrait"):
        lpkernels.optimize(fused)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Linear has no fused form"):
        build(torch.nn.Linear(1, 1), "fp32")


@pytest.mark.gpu
def test_half_frame_and_its_graph() -> None:
    """Full config: the frame within 1.5 times the error of the baseline under FP16 autocast, and as one CUDA graph."""
    baseline = LivePortrait.random(0, LivePortraitConfig.full(), device="cuda")
    half = LivePortrait(baseline.config, dtype=torch.float16)
    half.load_state_dict(baseline.state_dict())
    model = lpkernels.optimize(baseline, "fp16")
    generator = torch.Generator().manual_seed(8)
    feature_3d = torch.randn(1, 32, 16, 64, 64, generator=generator).cuda()
    kp_source, kp_driving = (kp.cuda() for kp in keypoints())
    truth = baseline.warp_decode(feature_3d, kp_source, kp_driving)
    own = relative_error(half.cuda().warp_decode(feature_3d, kp_source, kp_driving), truth)
    came = model.warp_decode(feature_3d, kp_source, kp_driving)
    assert relative_error(came, truth) <= 1.5 * own + contract.ULPS[torch.float16]

    source = model.prepare_warp(feature_3d, kp_source)

    def call(kp_driving: Tensor) -> tuple[Tensor, ...]:
        return (model.render(source, kp_driving),)

    contract.check_graph_capture(call, [kp_driving], lambda inputs: inputs[0].add_(0.02))


@pytest.mark.gpu
def test_a_frame_on_hopper_imports_no_triton() -> None:
    """Importing it and compiling its kernels is half a second of a start, two with an empty cache."""
    for op in ops.registry().values():
        if (cuda := op.backends.get("cuda")) and (reason := cuda.why_not("cuda")):
            pytest.skip(reason)
    code = """
import sys, torch, lpkernels
model = lpkernels.optimize(lpkernels.LivePortrait.random(0, device="cuda"), "fp16")
kp = torch.zeros(1, 21, 3, device="cuda")
picture = torch.zeros(1, 256, 256, 3, dtype=torch.uint8, device="cuda")
feature_3d = model.extract_feature_3d(picture.permute(0, 3, 1, 2) / 255)
model.heads(picture)
model.render(model.prepare_warp(feature_3d, kp), kp)
torch.cuda.synchronize()
print("triton" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
