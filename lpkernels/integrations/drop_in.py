"""``accelerate`` and ``restore``: fused networks in the place of a program's own, and back."""

from __future__ import annotations

import threading
from typing import overload

import torch
from torch import nn

from lpkernels.errors import InputError
from lpkernels.integrations import _paste_back
from lpkernels.integrations._construction import Acceleration
from lpkernels.integrations._find import Found, find, holders
from lpkernels.integrations._networks import NETWORKS, baseline_of
from lpkernels.integrations._patch import Patch, exchange, is_compiled, patch_of, unwrapped
from lpkernels.integrations._replacements import Settings
from lpkernels.integrations._report import Part, Report

_one_at_a_time = threading.RLock()


@overload
def accelerate(
    target: None = None,
    precision: str = ...,
    *,
    graph: bool | None = ...,
    check_finite: bool = ...,
    **switches: bool,
) -> Acceleration: ...


@overload
def accelerate(
    target: object, precision: str = ..., *, graph: bool | None = ..., check_finite: bool = ..., **switches: bool
) -> Report: ...


def accelerate(
    target: object = None,
    precision: str = "fp16",
    *,
    graph: bool | None = None,
    check_finite: bool = False,
    **switches: bool,
) -> Report | Acceleration:
    """Let fused networks answer in the place of a program's own; its code runs on untouched.

    >>> pipeline = LivePortraitPipeline(inference_cfg, crop_cfg)  # the original's
    >>> print(lpkernels.accelerate(pipeline))
    >>> pipeline.execute(args)

    Networks are recognised by their parameters' keys and shapes, whatever code they came from, and keep their
    arguments, answers and dtypes. Everything is built before anything is replaced. The modules stay where they are,
    with their parameters: ``restore`` gives exactly the original results. No gradient passes through.

    Calling it again is allowed: what is replaced with the same settings stays, anything else is made anew from the
    original, and parts that are switched off now are put back.

    Args:
        target: an original LivePortraitWrapper or LivePortraitPipeline (humans or animals), an object that holds one
            (ComfyUI's pipelines and engines), or one network. None: the answer is a context manager that accelerates
            every wrapper constructed in it, see ``Acceleration``.
        precision: ``fp16``, ``bf16`` or ``fp32``, as in ``lpkernels.optimize``.
        graph: frames as CUDA graphs, one for each shape: True must, False must not, None wherever it can be done.
        check_finite: raise LpkernelsError naming the first layer that gives inf or NaN; slow, for finding an overflow.
        switches: ``appearance_feature_extractor``, ``motion_extractor``, ``warping_module``, ``spade_generator``,
            ``paste_back``; False leaves that part as it is.

    Returns:
        What was replaced, what was left and why.

    Raises:
        InputError: nothing to replace, a version that is not known (with the keys and shapes that differ), an unknown
            switch or value. Nothing was replaced then.
    """
    settings = Settings(precision, graph, check_finite)
    names = [*(network.name for network in NETWORKS), _paste_back.NAME]
    for name, value in switches.items():
        if name not in names or not isinstance(value, bool):
            raise InputError(f"switches are {', '.join(names)}, True or False; got {name}={value!r}")
    off = {name for name, on in switches.items() if not on}
    if target is None:
        return Acceleration(lambda made: _accelerate(made, settings, off), restore)
    return _accelerate(target, settings, off)


def restore(target: object) -> Report:
    """Let a program's own networks answer again; nothing happens to those that were not replaced.

    Raises:
        InputError: ``target`` holds no network of LivePortrait.
    """
    with _one_at_a_time:
        found = find(target)
        patches = {id(row): patch for row in found if row.module is not None and (patch := patch_of(row.module))}
        exchange(patches.values(), [])
        paste_back = _restore_paste_back(target, found)
    notes = {True: "put back", False: "was not replaced"}
    parts = [_part(row, False, row.why_left or notes[id(row) in patches]) for row in found]
    return _report(target, parts + paste_back)


def _accelerate(target: object, settings: Settings, off: set[str]) -> Report:
    with _one_at_a_time:
        parts, old, new = [], [], []
        found = find(target)
        for row in found:
            part, before, after = _plan(row, settings, off)
            parts.append(part)
            if before is not after:
                old += [before] if before is not None else []
                new += [after] if after is not None else []
        exchange(old, new)
        paste_back = _replace_paste_back(target, found, off)
    return _report(target, parts + paste_back)


def _replace_paste_back(target: object, found: list[Found], off: set[str]) -> list[Part]:
    """Replaces the function that goes with networks, where the program has one and any of them is replaced."""
    package = _package_of(target)
    replaced = [row.module for row in found if row.module is not None and patch_of(row.module) is not None]
    if package is None or not replaced:
        return []
    if _paste_back.NAME in off:
        _paste_back.remove(package, replaced)
        return [_function(package, False, "switched off")]
    device = next(unwrapped(replaced[0]).parameters()).device
    _paste_back.install(package, device, replaced)
    return [_function(package, True, f"on {device}, for every object of the package")]


def _restore_paste_back(target: object, found: list[Found]) -> list[Part]:
    package = _package_of(target)
    if package is None:
        return []
    was = _paste_back.installed(package)
    if _paste_back.remove(package, [row.module for row in found if row.module is not None]):
        return [_function(package, False, "put back" if was else "was not replaced")]
    return [_function(package, True, "other objects of the package are accelerated")]


def _package_of(target: object) -> str | None:
    return _paste_back.package_of(holder for _, holder in holders(target))


def _function(package: str, replaced: bool, note: str) -> Part:
    return Part(f"{package}: {_paste_back.NAME}", "function", _paste_back.NAME, replaced, note)


def _plan(row: Found, settings: Settings, off: set[str]) -> tuple[Part, Patch | None, Patch | None]:
    """What is said of a module, its patch now, and the one it is to have."""
    if row.module is None or row.network is None:
        return _part(row, False, row.why_left), None, None
    before = patch_of(row.module)
    if row.network.name in off:
        return _part(row, False, "switched off"), before, None
    original = unwrapped(row.module)
    kept = before is not None and before.replacement.serves(original, settings)
    after = before if kept else _build(row.module, original, row, settings)
    assert after is not None
    how = [settings.precision]
    how += ["CUDA graphs"] if after.replacement.records else []
    how += ["as before"] if kept else []
    how += ["its torch.compile is bypassed"] if is_compiled(row.module) else []
    return _part(row, True, ", ".join(how)), before, after


def _build(module: nn.Module, original: nn.Module, row: Found, settings: Settings) -> Patch:
    """A patch that is not installed."""
    assert row.network is not None
    # Weights made in inference mode could never be written again; autocast would round them on the way.
    with torch.inference_mode(False), torch.no_grad():
        baseline = baseline_of(row.network, original, row.where)
        with torch.autocast(next(baseline.parameters()).device.type, enabled=False):
            return Patch(module, row.network.replacement(original, baseline, settings))


def _part(row: Found, replaced: bool, note: str) -> Part:
    return Part(row.where, row.kind, row.network.name if row.network else None, replaced, note)


def _report(target: object, parts: list[Part]) -> Report:
    return Report(type(target).__name__, tuple(parts))
