"""The whole frame: uint8 driving frame on the device -> uint8 animated frame on the device, as upstream does it.

Motion extractor, keypoint maths, stitching, warping, decoding, through the pieces of ``lpkernels.animate``; the
networks come prepared with any choice of techniques, one by one or the whole step at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import backends
from benchmarks.own import FORMS, Form, Watched
from benchmarks.providers import BASELINES, baseline_provider
from benchmarks.techniques import Converted, Techniques, assemble, prepare, require
from benchmarks.work import Candidate, Provider, dtype_of
from lpkernels.animate.animator import Animator
from lpkernels.animate.motion import Motion, refine_motion, source_keypoints
from lpkernels.animate.portrait import draw_portrait, driving_frames
from lpkernels.animate.retarget import MotionOptions, drive
from lpkernels.fused.convert import optimize
from lpkernels.models.live_portrait import LivePortrait
from lpkernels.models.pixels import resize_uint8, to_uint8
from lpkernels.models.portrait_model import PortraitModel

Call = Callable[..., Any]
CLIP = 16  # driving frames that input sets are drawn from
WHOLE = "-whole"


@dataclass(frozen=True)
class Scene:
    """What is computed once per source and once per driving clip."""

    feature_3d: Tensor
    source: Motion
    x_s: Tensor
    first: Motion


@dataclass
class FrameStep:
    """One animated frame from prepared networks, by ``modules``' names; the ``Retargeter`` that ``drive`` asks for."""

    networks: Mapping[str, Call]
    scene: Scene
    image_size: int
    options: MotionOptions = dataclasses.field(default_factory=MotionOptions)

    def stitch(self, features: Tensor) -> Tensor:
        return self.networks["stitching"](features).float()

    def retarget_eye(self, features: Tensor) -> Tensor:
        raise NotImplementedError("the benchmark's frame retargets no eyes")

    def retarget_lip(self, features: Tensor) -> Tensor:
        raise NotImplementedError("the benchmark's frame retargets no lips")

    def __call__(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, S, S, 3) uint8."""
        scene = self.scene
        driving = read_motion(self.networks["motion_extractor"], resize_uint8(frames, self.image_size))
        x_d = drive(self, scene.source, scene.x_s, driving, scene.first, self.options)
        feature_3d = scene.feature_3d.expand(x_d.shape[0], -1, -1, -1, -1)
        warped = self.networks["warping_module"](feature_3d, x_d, scene.x_s.expand_as(x_d))["out"]
        return to_uint8(self.networks["spade_generator"](warped).float())


def read_motion(motion_extractor: Call, image: Tensor) -> Motion:
    """M's heads as FP32, refined."""
    return refine_motion({name: head.float() for name, head in motion_extractor(image).items()})


@lru_cache(maxsize=2)
def clip(size: int) -> tuple[np.ndarray, ...]:
    """The drawn driving clip."""
    return tuple(driving_frames(CLIP, size))


def driving(size: int, batch: int, seed: int, device: torch.device) -> tuple[Tensor]:
    """``batch`` consecutive frames of the drawn clip, from the ``seed``-th on: (B, size, size, 3) uint8."""
    frames = clip(size)
    chosen = [frames[(3 + 5 * seed + index) % CLIP] for index in range(batch)]
    return (torch.from_numpy(np.stack(chosen)).to(device),)


def build(model: LivePortrait, techniques: Techniques, device: torch.device, whole: bool = False) -> Candidate:
    """A frame step with ``techniques``: on the step as a ``whole`` (CUDA graphs always), or on each network."""
    require(techniques, device)
    around = dataclasses.replace(techniques, cuda_graph=False, compile=None)
    whole = whole or techniques.cuda_graph
    scene, size = make_scene(model, around, device), model.config.image_size
    if whole:  # flags are set around the step, not inside it, where a compiler would have to follow them
        converted = {name: Converted(module, _of(name, around)) for name, module in modules(model).items()}
        return assemble(FrameStep(converted, scene=scene, image_size=size).__call__, techniques, device)
    parts = {name: _part(module, _of(name, techniques), device) for name, module in modules(model).items()}
    step = FrameStep({name: part.call for name, part in parts.items()}, scene=scene, image_size=size)
    if not techniques.compile:
        return Candidate(step)

    def call(frames: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return step(frames)

    return Candidate(call, lambda: _first_reason(parts), lambda: _sum_extras(parts))


class AnimatorStep:
    """``lpkernels.Animator`` as a program calls it: pictures on the device in and out, one or a batch at a time.

    The clip's first picture comes before the first call, for relative motion to count from.
    """

    def __init__(self, model: PortraitModel[Any]) -> None:
        size = model.config.image_size
        self.animator = Animator(model, draw_portrait(size))
        self._first: Tensor | None = torch.from_numpy(clip(size)[0]).to(model.device)

    def __call__(self, frames: Tensor) -> Tensor:
        if self._first is not None:
            self.animator.step_batch(self._first.expand(len(frames), -1, -1, -1))
            self._first = None
        return self.animator.step_batch(frames)


def build_animator(model: PortraitModel[Any], form: Form) -> Candidate:
    """The animator of a model; each of ``another`` has a CUDA graph of its own and shares the model."""
    seen: backends.Seen = {}

    def another() -> Watched:
        with form.setting():
            return Watched(AnimatorStep(model), form, seen)

    call = another()
    return Candidate(call, extras=call.facts, another=another)


def build_own(model: LivePortrait, form: Form, device: torch.device) -> Candidate:
    """The optimized model's animator. Raises Unavailable where the form cannot run."""
    form.require(device)
    with form.setting():
        optimized = optimize(model, form.precision)
    return build_animator(optimized, form)


def twin(model: LivePortrait, dtype: torch.dtype) -> LivePortrait:
    """A copy under another compute dtype, with weights of its own: memory counts them as it counts the baselines'."""
    with torch.device("meta"):
        other = LivePortrait(model.config, dtype=dtype)
    other.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    return other


def make_scene(model: LivePortrait, techniques: Techniques, device: torch.device) -> Scene:
    """Source and first driving frame, prepared by the provider's own arithmetic."""
    size = model.config.image_size
    features = _part(model.appearance_feature_extractor, techniques, device).call
    motion = _part(model.motion_extractor, techniques, device).call
    with torch.no_grad():
        images = torch.from_numpy(np.stack([draw_portrait(size), clip(size)[0]])).to(device)
        images = resize_uint8(images, size)
        source, first = read_motion(motion, images[:1]), read_motion(motion, images[1:])
        return Scene(features(images[:1]).float(), source, source_keypoints(source), first)


def reference(model: LivePortrait, device: torch.device) -> Call:
    """The frame in FP32 without TF32."""
    return build(model, Techniques(tf32=False), device).call


def of_frame(model: LivePortrait, device: torch.device, every_form: bool = True) -> list[Provider]:
    """Every provider of the whole frame; without ``every_form`` not what other GPUs would run."""

    def baseline(techniques: Techniques, whole: bool = False) -> Callable[[], Candidate]:
        return lambda: build(model, techniques, device, whole)

    def own(form: Form) -> Callable[[], Candidate]:
        return lambda: build_own(model, form, device)

    found = [baseline_provider(name, device, baseline(techniques)) for name, techniques in BASELINES.items()]
    whole = BASELINES["compile-reduce-overhead"]
    found.append(Provider(f"compile-reduce-overhead{WHOLE}", whole.works_in(device), baseline(whole, whole=True)))
    published = Form("fp16" if device.type == "cuda" else "fp32")  # the original's networks, under autocast
    found.append(
        Provider(
            "lpkernels-animator",
            published.precision,
            lambda: build_animator(twin(model, dtype_of(published.precision)), published),
        )
    )
    forms = {name: form for name, form in FORMS.items() if every_form or form.hopper}
    return found + [Provider(name, form.works_in(device), own(form)) for name, form in forms.items()]


def _part(module: nn.Module, techniques: Techniques, device: torch.device) -> Candidate:
    return prepare(module, techniques, device, alone=False)


def modules(model: LivePortrait) -> dict[str, nn.Module]:
    """The networks that run in every frame."""
    return {
        "motion_extractor": model.motion_extractor,
        "stitching": model.stitching_retargeting_module["stitching"],
        "warping_module": model.warping_module,
        "spade_generator": model.spade_generator,
    }


def weights(model: LivePortrait) -> int:
    """Parameters of the networks that run in every frame."""
    return sum(parameter.numel() for module in modules(model).values() for parameter in module.parameters())


def _of(name: str, techniques: Techniques) -> Techniques:
    """The original keeps its MLPs out of autocast."""
    mlp_under_autocast = name == "stitching" and techniques.precision == "amp"
    return dataclasses.replace(techniques, precision="fp32") if mlp_under_autocast else techniques


def _first_reason(parts: dict[str, Candidate]) -> str | None:
    reasons = [f"{name}: {reason}" for name, part in parts.items() if (reason := part.fell_back())]
    return reasons[0] if reasons else None


def _sum_extras(parts: dict[str, Candidate]) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for part in parts.values():
        for name, value in part.extras().items():
            totals[name] = totals.get(name, 0) + value
    return totals
