"""Malformed targets and settings of ``accelerate`` and ``restore``: refused in one line, and no network is touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lpkernels
from lpkernels.errors import InputError
from tests.integrations import programs
from tests.integrations.programs import NETWORKS, assert_same, patched

TARGETS: dict[str, Any] = {
    "a number": 3,
    "not a number": math.nan,
    "text": "pipeline",
    "bytes": b"pipeline",
    "False": False,
    "an empty list": [],
    "a list of numbers": [1, 2],
    "an empty dict": {},
    "a set": {1},
    "a class": nn.Module,
    "a function": print,
    "a tensor": torch.zeros(3),
    "an array": np.zeros(3),
    "a type": int,
    "an exception": ValueError("x"),
    "an empty module": nn.Module(),
    "a module of something else": nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()),
    "a namespace": SimpleNamespace(warping=3),
    "a holder of nothing": SimpleNamespace(live_portrait_wrapper=None),
    "a holder of another": SimpleNamespace(live_portrait_wrapper=SimpleNamespace(motion=[])),
}


@pytest.mark.parametrize("function", [lpkernels.accelerate, lpkernels.restore])
@pytest.mark.parametrize("target", TARGETS)
def test_targets(target: str, function: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError) as caught:
        function(TARGETS[target])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20


@pytest.fixture(scope="module")
def wrapper() -> Any:
    return programs.wrapper()


SETTINGS: list[tuple[dict[str, Any], str]] = [
    *(({"precision": value}, "precision") for value in ("fp8", "FP16", "", None, 16, torch.half, ["fp16"], math.nan)),
    *(({"graph": value}, "graph") for value in (True, "yes", 1, "False", math.nan)),
    *(({"check_finite": value}, "check_finite") for value in ("yes", 1, None, math.nan)),
    *(({name: value}, name) for name in NETWORKS[2:] for value in (None, 0, 1, "False", math.nan)),
    *(({name: False}, name) for name in ("warping", "stitching", "Warping_Module", "device", "half")),
]


@pytest.mark.parametrize(("settings", "name"), SETTINGS, ids=repr)
def test_settings(wrapper: Any, settings: dict[str, Any], name: str) -> None:
    with pytest.raises((InputError, TypeError)) as caught:
        lpkernels.accelerate(wrapper, **settings)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert patched(wrapper) == []


def change_parameter(wrapper: Any, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module, _, key = name.rpartition(".")
    owner: Any = wrapper
    for part in module.split("."):
        owner = getattr(owner, part)
    setattr(owner, key, nn.Parameter(change(getattr(owner, key).detach()), requires_grad=False))


BROKEN: dict[str, Callable[[Any], None]] = {
    "one channel fewer": lambda w: change_parameter(w, "spade_generator.fc.weight", lambda t: t[:-1]),
    "a kernel of another size": lambda w: change_parameter(w, "spade_generator.fc.weight", lambda t: t[..., :1]),
    "no rank": lambda w: change_parameter(w, "spade_generator.fc.bias", lambda t: t[0]),
    "no element": lambda w: change_parameter(w, "spade_generator.fc.bias", lambda t: t[:0]),
    "whole numbers": lambda w: change_parameter(w, "spade_generator.fc.bias", lambda t: t.int()),
    "complex numbers": lambda w: change_parameter(w, "spade_generator.fc.bias", lambda t: t.cfloat()),
    "on no device": lambda w: change_parameter(w, "spade_generator.fc.bias", lambda t: t.to("meta")),
    "two dtypes": lambda w: change_parameter(w, "spade_generator.fc.bias", lambda t: t.double()),
    "an empty network": lambda w: setattr(w, "spade_generator", nn.Module()),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_network_leaves_the_others_alone(broken: str) -> None:
    wrapper = programs.wrapper()
    whole = {name: getattr(wrapper, name) for name in NETWORKS[:2]}
    answers = {name: programs_answer(module) for name, module in whole.items()}
    BROKEN[broken](wrapper)
    with pytest.raises(InputError, match="spade_generator") as caught:
        lpkernels.accelerate(wrapper)
    assert "\n" not in str(caught.value)
    assert patched(wrapper) == []
    for name, module in whole.items():
        assert_same(programs_answer(module), answers[name])


def programs_answer(module: nn.Module) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        answer = module(torch.full((1, 3, 64, 64), 0.5))
    return answer if isinstance(answer, dict) else {"answer": answer}
