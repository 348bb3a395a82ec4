"""A whole clip against the original program's answers: driving keypoints and frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lpkernels.animate.animator import Animator
from lpkernels.animate.source import prepare_source
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.models.pixels import to_uint8
from lpkernels.models.warp_source import WarpSource
from tests.golden.load import compare, compare_rgb, load_golden

SIZES = ["tiny", pytest.param("full", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", SIZES)
def test_source(name: str) -> None:
    _, model, arrays = load_golden(name)
    source = prepare_source(model, arrays["source"])
    compare("feature_3d", source.feature_3d, arrays)
    compare("x_s", source.x_s, arrays)
    compare("R_s", source.motion.R, arrays)
    for key in ("kp", "exp", "t", "scale"):
        compare(f"kp_info.{key}", getattr(source.motion, key), arrays)


@pytest.mark.parametrize("name", SIZES)
def test_clip(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, arrays = load_golden(name)
    driven: list[torch.Tensor] = []
    decoded: list[torch.Tensor] = []

    def recording_render(self: LivePortrait, source: WarpSource, kp_driving: torch.Tensor) -> torch.Tensor:
        driven.append(kp_driving)
        decoded.append(self.warp_decode(source.feature_3d, source.kp_source, kp_driving))
        return to_uint8(decoded[-1])

    monkeypatch.setattr(LivePortrait, "render", recording_render)
    animator = Animator(model, arrays["source"])
    for index in range(3):
        frame = animator.step(arrays[f"driving{index}"])
        compare(f"frame{index}.x_d", driven[index], arrays)
        compare(f"frame{index}.out", decoded[index], arrays)
        compare_rgb(f"frame{index}.rgb", frame, arrays)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_clip_on_the_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config, reference, arrays = load_golden("tiny")
    model = LivePortrait(config, dtype=dtype)
    model.load_state_dict(reference.state_dict())
    animator = Animator(model.to("cuda"), arrays["source"])
    for index in range(3):
        frame = animator.step(arrays[f"driving{index}"])
        difference = np.abs(frame.astype(int) - arrays[f"frame{index}.rgb"])
        assert difference.mean() < {torch.float32: 0.5, torch.float16: 2.0, torch.bfloat16: 8.0}[dtype]


def test_run_after_reset_gives_the_same_clip() -> None:
    _, model, arrays = load_golden("tiny")
    animator = Animator(model, arrays["source"])
    frames = [animator.step(arrays[f"driving{index}"]) for index in range(3)]
    animator.reset()
    again = list(animator.run(arrays[f"driving{index}"] for index in range(3)))
    assert all(np.array_equal(one, other) for one, other in zip(frames, again, strict=True))
