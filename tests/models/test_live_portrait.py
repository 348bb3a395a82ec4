"""The model as the rest of the program calls it: shapes, precisions, batches, refusals."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lpkernels import trace
from lpkernels.errors import InputError
from lpkernels.models import LivePortrait, LivePortraitConfig
from lpkernels.models.config import SPADEGeneratorConfig, WarpingModuleConfig


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 1, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=generator())


def volumes(batch: int = 1, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(batch, 8, 8, height, width, generator=generator())


def keypoints(batch: int = 1) -> tuple[Tensor, Tensor]:
    source = 0.4 * torch.randn(batch, 21, 3, generator=generator(1))
    return source, source + 0.05 * torch.randn(batch, 21, 3, generator=generator(2))


def relative_error(came: Tensor, expected: Tensor) -> float:
    return ((came - expected).norm() / expected.norm()).item()


def answers(model: LivePortrait, batch: int = 2, side: int = 16) -> dict[str, Tensor]:
    """Every method's answer to one input, by name; ``side`` is the feature volume's."""
    volume, (kp_source, kp_driving) = volumes(batch, side, side), keypoints(batch)
    image = images(batch, 4 * side, 4 * side)
    warped = {f"warp.{key}": value for key, value in model.warp(volume, kp_source, kp_driving).items()}
    features = torch.randn(batch, 126, generator=generator(3))
    return {
        "extract_feature_3d": model.extract_feature_3d(image),
        **{f"extract_motion.{key}": value for key, value in model.extract_motion(image).items()},
        **{key: value for key, value in warped.items() if value is not None},
        "decode": model.decode(0.5 * torch.randn(batch, 64, side, side, generator=generator(4))),
        "warp_decode": model.warp_decode(volume, kp_source, kp_driving),
        "stitch": model.stitch(features),
        "retarget_eye": model.retarget_eye(features[:, :66]),
        "retarget_lip": model.retarget_lip(features[:, :65]),
    }


SHAPES = {
    "extract_feature_3d": (2, 8, 8, 16, 16),
    **{f"extract_motion.{key}": (2, 66) for key in ("pitch", "yaw", "roll")},
    **{f"extract_motion.{key}": (2, 63) for key in ("exp", "kp")},
    "extract_motion.t": (2, 3),
    "extract_motion.scale": (2, 1),
    "warp.out": (2, 64, 16, 16),
    "warp.occlusion_map": (2, 1, 16, 16),
    "warp.deformation": (2, 8, 16, 16, 3),
    "decode": (2, 3, 128, 128),
    "warp_decode": (2, 3, 128, 128),
    "stitch": (2, 65),
    "retarget_eye": (2, 63),
    "retarget_lip": (2, 63),
}


@pytest.fixture(scope="module")
def expected(tiny: LivePortrait) -> dict[str, Tensor]:
    return answers(tiny)


@pytest.mark.usefixtures("poisoned")
def test_shapes_and_dtypes(tiny: LivePortrait, expected: dict[str, Tensor]) -> None:
    came = answers(tiny)
    assert {name: tuple(value.shape) for name, value in came.items()} == SHAPES
    for name, value in came.items():
        assert value.dtype == torch.float32
        assert value.isfinite().all(), name
        assert torch.equal(value, expected[name]), name


def test_image_is_a_picture(expected: dict[str, Tensor]) -> None:
    assert expected["decode"].min() >= 0
    assert expected["decode"].max() <= 1
    assert ((expected["warp.occlusion_map"] >= 0) & (expected["warp.occlusion_map"] <= 1)).all()


def test_warp_decode_is_decode_of_warp(tiny: LivePortrait) -> None:
    volume, (kp_source, kp_driving) = volumes(), keypoints()
    out = tiny.warp(volume, kp_source, kp_driving)["out"]
    assert out is not None
    assert torch.equal(tiny.decode(out), tiny.warp_decode(volume, kp_source, kp_driving))


def test_batch_of_two_is_two_of_one(tiny: LivePortrait) -> None:
    both = images(2)
    volume, (kp_source, kp_driving) = volumes(2), keypoints(2)
    for i in range(2):
        one = slice(i, i + 1)
        torch.testing.assert_close(tiny.extract_feature_3d(both)[one], tiny.extract_feature_3d(both[one]))
        torch.testing.assert_close(tiny.extract_motion(both)["kp"][one], tiny.extract_motion(both[one])["kp"])
        torch.testing.assert_close(
            tiny.warp_decode(volume, kp_source, kp_driving)[one],
            tiny.warp_decode(volume[one], kp_source[one], kp_driving[one]),
            rtol=1e-4,
            atol=1e-5,
        )


@settings(max_examples=8, deadline=None)
@given(height=st.integers(32, 75), width=st.integers(32, 75))
def test_any_image_size(height: int, width: int) -> None:
    model = _model()
    image = images(1, height, width)
    assert model.extract_feature_3d(image).shape == (1, 8, 8, height // 4, width // 4)
    assert model.extract_motion(image)["kp"].shape == (1, 63)


def test_volume_need_not_be_square(tiny: LivePortrait) -> None:
    assert tiny.warp_decode(volumes(1, 8, 24), *keypoints()).shape == (1, 3, 64, 192)


def test_strided_inputs(tiny: LivePortrait) -> None:
    image = images(2).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(tiny.extract_feature_3d(image), tiny.extract_feature_3d(image.contiguous()))
    kp_source, kp_driving = (kp.transpose(1, 2).contiguous().transpose(1, 2) for kp in keypoints())
    volume = volumes().to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(
        tiny.warp_decode(volume, kp_source, kp_driving), tiny.warp_decode(volumes(), *keypoints()), rtol=1e-4, atol=1e-5
    )


def test_lower_precision_inputs_are_taken(tiny: LivePortrait) -> None:
    image = images().half()
    assert torch.equal(tiny.extract_feature_3d(image), tiny.extract_feature_3d(image.float()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_autocast(tiny: LivePortrait, dtype: torch.dtype, tolerance: float) -> None:
    # One small picture: a CPU without 16-bit instructions takes seconds even for that.
    expected = answers(tiny, batch=1, side=8)
    model = LivePortrait.random(0, LivePortraitConfig.tiny(), dtype=dtype)
    assert model.dtype == dtype
    seen: dict[str, torch.dtype] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: seen.update({name: output.dtype})

    convolutions = {
        "F": model.appearance_feature_extractor.second,
        "M": model.motion_extractor.detector.fc_kp,
        "W": model.warping_module.fourth,
        "G": model.spade_generator.fc,
        "S": model.stitching_retargeting_module["stitching"],
    }
    for name, module in convolutions.items():
        module.register_forward_hook(watch(name))
    for name, value in answers(model, batch=1, side=8).items():
        assert value.dtype == torch.float32
        assert relative_error(value, expected[name]) < tolerance, name
    assert seen == {"F": dtype, "M": dtype, "W": dtype, "G": dtype, "S": torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_stitching_stays_float32(tiny: LivePortrait) -> None:
    model = LivePortrait.random(0, LivePortraitConfig.tiny(), dtype=torch.bfloat16)
    features = torch.randn(3, 126, generator=generator())
    assert torch.equal(model.stitch(features), tiny.stitch(features))


def test_an_outer_autocast_does_not_lower_a_float32_model(tiny: LivePortrait, expected: dict[str, Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        came = answers(tiny)
    assert all(torch.equal(value, expected[name]) for name, value in came.items())


def test_no_gradients(tiny: LivePortrait) -> None:
    kp_source, kp_driving = (kp.requires_grad_() for kp in keypoints())
    assert not tiny.warp_decode(volumes().requires_grad_(), kp_source, kp_driving).requires_grad


def test_networks_are_traced(tiny: LivePortrait) -> None:
    with trace.record() as recorder:
        tiny.extract_motion(images())
        tiny.warp_decode(volumes(), *keypoints())
        tiny.stitch(torch.zeros(1, 126))
    assert [(row.category, row.name, row.calls) for row in recorder.rows()] == [
        ("network", "motion_extractor", 1),
        ("network", "warping_module", 1),
        ("network", "spade_generator", 1),
        ("network", "stitching_retargeting_module", 1),
    ]


NETWORK_INPUTS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "appearance_feature_extractor": lambda: (images(1, 32, 32),),
    "motion_extractor": lambda: (images(1, 32, 32),),
    "warping_module": lambda: (volumes(1, 8, 8), *reversed(keypoints())),
    "spade_generator": lambda: (0.5 * torch.randn(1, 64, 8, 8, generator=generator()),),
}


def main_output(result: Any) -> Tensor:
    if isinstance(result, dict):
        return result["out"] if "out" in result else result["kp"]
    return result


@pytest.mark.parametrize("name", list(NETWORK_INPUTS))
def test_networks_compile_in_one_graph(tiny: LivePortrait, name: str) -> None:
    network, inputs = tiny.get_submodule(name), NETWORK_INPUTS[name]()
    with torch.no_grad():
        expected = main_output(network(*inputs))
        torch._dynamo.reset()
        came = main_output(torch.compile(network, backend="eager", fullgraph=True)(*inputs))
    torch.testing.assert_close(came, expected)


@pytest.mark.parametrize("name", list(NETWORK_INPUTS))
def test_networks_run_in_channels_last(tiny: LivePortrait, name: str) -> None:
    network, inputs = tiny.get_submodule(name), NETWORK_INPUTS[name]()
    with torch.no_grad():
        expected = main_output(network(*inputs))
        channels_last = copy.deepcopy(network)
        for module in channels_last.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
        nhwc = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]
        torch.testing.assert_close(main_output(channels_last(*nhwc)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", list(NETWORK_INPUTS))
def test_networks_run_with_16_bit_parameters(tiny: LivePortrait, name: str, device: str) -> None:
    if device == "cpu" and name == "warping_module":
        pytest.skip("PyTorch has no 16-bit avg_pool3d on the CPU")
    network = copy.deepcopy(tiny.get_submodule(name)).to(device).bfloat16()
    with torch.no_grad():
        low = main_output(network(*(x.to(device).bfloat16() for x in NETWORK_INPUTS[name]())))
    assert low.dtype == torch.bfloat16
    assert low.isfinite().all()


def test_variants_of_the_architecture() -> None:
    tiny = LivePortraitConfig.tiny()
    warping = dataclasses.replace(tiny.warping_module, estimate_occlusion_map=False)
    spade = dataclasses.replace(tiny.spade_generator, upscale=1)
    model = LivePortrait.random(0, dataclasses.replace(tiny, warping_module=warping, spade_generator=spade))
    result = model.warp(volumes(), *keypoints())
    assert result["occlusion_map"] is None
    assert model.warp_decode(volumes(), *keypoints()).shape == (1, 3, 64, 64)
    assert isinstance(model.spade_generator.conv_img, nn.Conv2d)
    assert "conv_img.weight" in model.spade_generator.state_dict()
    assert isinstance(warping, WarpingModuleConfig)
    assert isinstance(spade, SPADEGeneratorConfig)


def test_plain_construction_is_ready_for_inference() -> None:
    model = LivePortrait(LivePortraitConfig.tiny())
    assert model.device == torch.device("cpu")
    assert not model.training
    assert model.warp_decode(volumes(), *keypoints()).isfinite().all()


KP = torch.zeros(1, 21, 3)
BAD_INPUTS: list[tuple[Callable[[LivePortrait], object], type[Exception], str]] = [
    (lambda m: m.extract_motion("face.png"), TypeError, "image must be a torch.Tensor, got str"),
    (lambda m: m.extract_motion(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), TypeError, "image must have dtype"),
    (lambda m: m.extract_feature_3d(torch.zeros(3, 64, 64)), ValueError, r"image must have shape \(B, 3, H, W\)"),
    (lambda m: m.extract_feature_3d(torch.zeros(0, 3, 64, 64)), ValueError, "no empty dimension"),
    (lambda m: m.extract_feature_3d(torch.zeros(1, 4, 64, 64)), ValueError, r"got \(1, 4, 64, 64\)"),
    (lambda m: m.extract_motion(torch.zeros(1, 3, 31, 64)), ValueError, r"at least 32 pixels .* got \(31, 64\)"),
    (lambda m: m.extract_motion(torch.zeros(1, 3, 64, 64, device="meta")), ValueError, "model's device, cpu; got meta"),
    (
        lambda m: m.warp(torch.zeros(1, 8, 4, 16, 16), KP, KP),
        ValueError,
        r"feature_3d must have shape \(B, 8, 8, h, w\)",
    ),
    (lambda m: m.warp(volumes(1, 12, 16), KP, KP), ValueError, r"multiples of 8, got \(12, 16\)"),
    (lambda m: m.warp(volumes(2), KP, KP), ValueError, r"kp_source must have shape \(2, 21, 3\), got \(1, 21, 3\)"),
    (lambda m: m.warp_decode(volumes(), KP, KP[:, :20]), ValueError, r"kp_driving must have shape \(1, 21, 3\)"),
    (lambda m: m.decode(torch.zeros(1, 63, 16, 16)), ValueError, r"feature must have shape \(B, 64, h, w\)"),
    (lambda m: m.stitch(torch.zeros(1, 125)), ValueError, r"features must have shape \(B, 126\), got \(1, 125\)"),
    (lambda m: m.retarget_eye(torch.zeros(1, 65)), ValueError, r"features must have shape \(B, 66\)"),
    (lambda m: m.retarget_lip(torch.zeros(66)), ValueError, r"features must have shape \(B, 65\)"),
]


@pytest.mark.parametrize("case", range(len(BAD_INPUTS)))
def test_bad_inputs(tiny: LivePortrait, case: int) -> None:
    call, error, message = BAD_INPUTS[case]
    with pytest.raises(error, match=message):
        call(tiny)


def test_bad_dtype() -> None:
    with pytest.raises(InputError, match=r"dtype must be torch.float32, .* got torch.float64"):
        LivePortrait.random(0, LivePortraitConfig.tiny(), dtype=torch.float64)


@pytest.mark.parametrize(
    ("gpus", "device", "message"),
    [
        (0, "gpu", "device must be one that PyTorch knows, such as cpu or cuda:0; got 'gpu'"),
        (0, "cuda", "sees no CUDA GPU; use cpu"),
        (2, "cuda:2", r"this machine has 2 GPU\(s\), cuda:0 to cuda:1"),
    ],
)
def test_bad_device(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InputError, match=message):
        LivePortrait.random(0, LivePortraitConfig.tiny(), device=device)
    with pytest.raises(InputError, match=message):
        LivePortrait.from_pretrained("absent", device=device)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_gpu_agrees_with_the_cpu(expected: dict[str, Tensor], dtype: torch.dtype, tolerance: float) -> None:
    model = LivePortrait.random(0, LivePortraitConfig.tiny(), device="cuda", dtype=dtype)
    volume, (kp_source, kp_driving) = volumes(2).cuda(), (kp.cuda() for kp in keypoints(2))
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        image = model.warp_decode(volume, kp_source, kp_driving)
        heads = model.extract_motion(images(2).cuda())
        feature_3d = model.extract_feature_3d(images(2).cuda())
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    assert image.device.type == "cuda"
    assert image.dtype == torch.float32
    assert relative_error(image.cpu(), expected["warp_decode"]) < tolerance
    assert relative_error(heads["kp"].cpu(), expected["extract_motion.kp"]) < tolerance
    assert relative_error(feature_3d.cpu(), expected["extract_feature_3d"]) < tolerance


_MODELS: list[LivePortrait] = []


def _model() -> LivePortrait:
    """A model for hypothesis tests, which cannot take function-scoped inputs."""
    if not _MODELS:
        _MODELS.append(LivePortrait.random(0, LivePortraitConfig.tiny()))
    return _MODELS[0]
