"""Which networks are recognised, by what, and what replaces them.

A network is known by its parameters, not by its class or the module it comes from: every program carries its own copy
of the original's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels._checks import FLOATS
from lpkernels.errors import InputError
from lpkernels.integrations import _infer, _replacements
from lpkernels.models.appearance_feature_extractor import AppearanceFeatureExtractor
from lpkernels.models.config import LivePortraitConfig
from lpkernels.models.motion_extractor import MotionExtractor
from lpkernels.models.spade_generator import SPADEDecoder
from lpkernels.models.warping_network import WarpingNetwork

DEVICES = ("cpu", "cuda")
NAMED = 3  # keys named in a message; the rest is counted


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Attributes:
        name: the original's, and the switch.
        marks: beginnings of parameter keys; a module with most of them is this network, in a known version or not.
        infer: its sizes from its shapes.
        baseline: the published network of those sizes.
        replacement: made from the original, the baseline with its weights, and settings.
        attributes: what else decides about its arithmetic, with the values that are understood.
    """

    name: str
    marks: tuple[str, ...]
    infer: Callable[[_infer.Shapes], Any]
    baseline: Callable[[Any], nn.Module]
    replacement: Callable[[nn.Module, Any, _replacements.Settings], _replacements.Replacement]
    attributes: Mapping[str, object] = field(default_factory=dict)


NETWORKS = (
    Network(
        "appearance_feature_extractor",
        ("first.", "down_blocks.", "second.", "resblocks_3d."),
        _infer.appearance_feature_extractor,
        AppearanceFeatureExtractor,
        _replacements.AppearanceFeatureExtractorReplacement,
    ),
    Network(
        "motion_extractor",
        (
            "detector.downsample_layers.",
            "detector.stages.",
            "detector.fc_kp.",
            "detector.fc_pitch.",
            "detector.fc_exp.",
        ),
        _infer.motion_extractor,
        MotionExtractor,
        _replacements.MotionExtractorReplacement,
    ),
    Network(
        "warping_module",
        ("dense_motion_network.hourglass.", "dense_motion_network.mask.", "third.", "fourth."),
        _infer.warping_module,
        WarpingNetwork,
        _replacements.WarpingReplacement,
        {"flag_use_occlusion_map": True},
    ),
    Network(
        "spade_generator",
        ("fc.", "G_middle_0.", "up_0.", "up_1.", "conv_img."),
        _infer.spade_generator,
        SPADEDecoder,
        _replacements.SPADEDecoderReplacement,
    ),
)

LEFT = {
    ("mlp.",): "its MLPs take no time worth saving, and stay float32",
}
"""Marks of what is recognised and left as it is, with the reason."""


def identify(module: nn.Module) -> Network | None:
    """The network that ``module`` is, perhaps in an unknown version; None if it is none of them."""
    keys = list(module.state_dict())
    shares = [(_share(keys, network.marks), network) for network in NETWORKS]
    share, network = max(shares, key=lambda pair: pair[0])
    return network if share > 0.5 else None


def why_left(module: nn.Module) -> str | None:
    """Why a module of LivePortrait is never replaced; None if it is not known at all."""
    keys = list(module.state_dict())
    return next((reason for marks, reason in LEFT.items() if _share(keys, marks) == 1), None)


def baseline_of(network: Network, module: nn.Module, where: str) -> nn.Module:
    """The published network with the weights of ``module``, float32, shared where they are float32 already.

    Raises:
        InputError: ``module`` is another version of it; the message says in what.
    """
    state = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    made = _on_meta(network, state)
    problems = [*_problems(network, module, state), *_differences(made or _published(network), state)]
    if problems or made is None:
        found = "; ".join(problems) or "its shapes do not fit together"
        raise InputError(
            f"{where} ({type(module).__name__}) is no version of {network.name} that lpkernels knows: {found}. Nothing "
            f"was replaced; {network.name}=False leaves it out"
        )
    made.requires_grad_(False).load_state_dict({key: _plain(value) for key, value in state.items()}, assign=True)
    return made.eval()


def _plain(value: Tensor) -> Tensor:
    """A weight as float32, in a tensor that every mode may use: ComfyUI loads networks in inference mode."""
    plain = value.float() if value.is_floating_point() else value
    return plain.clone() if plain.is_inference() else plain


def _share(keys: list[str], marks: tuple[str, ...]) -> float:
    return sum(any(key.startswith(mark) for key in keys) for mark in marks) / len(marks)


def _on_meta(network: Network, state: Mapping[str, Tensor]) -> nn.Module | None:
    """The network of the state's sizes, without memory; None where the shapes give no sizes."""
    try:
        config = network.infer({key: tuple(value.shape) for key, value in state.items()})
        with torch.device("meta"):
            return network.baseline(config)
    except (ArithmeticError, LookupError, RuntimeError, ValueError):
        return None


def _published(network: Network) -> nn.Module:
    with torch.device("meta"):
        return network.baseline(getattr(LivePortraitConfig.full(), network.name))


def _problems(network: Network, module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with a network besides keys and shapes."""
    for name, value in network.attributes.items():
        if getattr(module, name, value) != value:
            yield f"{name} is {getattr(module, name)!r}, not {value!r}"
    if module.training:
        yield "it is in training mode; call .eval()"
    floats = {value.dtype for value in state.values() if value.dtype not in (torch.int64, *FLOATS)}
    if floats:
        yield f"its parameters are {_listed(str(dtype).removeprefix('torch.') for dtype in floats)}"
    devices = {value.device for value in state.values()}
    if len(devices) > 1 or any(device.type not in DEVICES for device in devices):
        yield f"it is on {_listed(map(str, devices))}, not on one CPU or CUDA device"


def _differences(expected: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    """Keys and shapes of ``state`` that are not those of ``expected``."""
    shapes = {key: tuple(value.shape) for key, value in expected.state_dict().items()}
    if missing := [key for key in shapes if key not in state]:
        yield f"missing keys: {_listed(missing)}"
    if unexpected := [key for key in state if key not in shapes]:
        yield f"unexpected keys: {_listed(unexpected)}"
    if other := [
        f"{key} {tuple(state[key].shape)}, expected {shape}"
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != shape
    ]:
        yield f"other shapes: {_listed(other)}"


def _listed(items: Any) -> str:
    found = list(items)
    rest = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + rest
