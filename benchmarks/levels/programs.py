"""A real program before ``lpkernels.accelerate``, after it, and after ``restore``: its networks, and its whole loop."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import checkout, program_media
from benchmarks.context import Context
from benchmarks.endurance import refuse
from benchmarks.harness import TOLERANCE_FACTOR, TOLERANCE_FLOOR, one_line, strict_fp32
from benchmarks.levels.frame import EIGHT_BIT_FLOOR
from benchmarks.program import Program
from benchmarks.timing import Sampler, drift, quantile, sampler_for
from benchmarks.work import Measurement, Unavailable, relative_error
from lpkernels.integrations import accelerate, restore

FRAMES = {"cuda": 80, "cpu": 2}
PRECISION = {"cuda": "fp16", "cpu": "fp32"}
PROVIDERS = ("original", "accelerated", "restored")
SUBJECTS = ("M", "W+G", "loop")
WARM_UP = 2  # frames before the timed ones


@dataclass
class Stage:
    """What one state of the program does: milliseconds and answers (tensors on the host) by subject."""

    times: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, Tensor] = field(default_factory=dict)


def measure(context: Context) -> Iterator[list[Measurement]]:
    """One record for each subject and state of the original program around the context's weights.

    Raises:
        Unavailable: the environment names no checkout, or its program cannot be constructed.
    """
    root = checkout.path()
    if root is None:
        raise Unavailable(f"{checkout.VARIABLE} names no checkout of LivePortrait")
    options, size = context.options, context.config.output_size
    count = options.frames or FRAMES[context.device.type]
    if options.source and options.driving:
        media = program_media.loaded(options.source, options.driving, count, size)
    else:
        media = program_media.drawn(count, size)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            found = stack.enter_context(checkout.importable(root))
            program = Program(found, context.model, folder, media)
        except Exception as error:  # whatever a program of others raises where it does not fit
            raise Unavailable(f"the program cannot be constructed: {one_line(error)}") from error
        yield _records(context, program, sorted(found.missing))


def _records(context: Context, program: Program, missing: list[str]) -> list[Measurement]:
    """The states in turn; where accelerating or restoring fails, what was measured before it and a reason."""
    sampler = sampler_for(context.device, False)
    context.progress("programs: FP32")
    inputs, truth = _in_fp32(program, sampler)
    stages: dict[str, Stage] = {}
    failure: str | None = None
    for name in PROVIDERS:
        context.progress(f"programs: {name}")
        try:
            if name == "accelerated":
                accelerate(program.wrapper, PRECISION[context.device.type])
            elif name == "restored":
                restore(program.wrapper)
            stages[name] = run(program, inputs, sampler)
        except Exception as error:
            if name == "original":
                raise Unavailable(f"the program fails by itself: {one_line(error)}") from error
            failure = f"failed: {one_line(error)}"
            restore(program.wrapper)
            break
    facts = {"missing": missing, "paste_back": program.pastes}
    return [
        _record(context, program, subject, name, stages, truth, facts, failure)
        for subject in SUBJECTS
        for name in PROVIDERS
        if context.options.selected(name)
    ]


def _record(
    context: Context,
    program: Program,
    subject: str,
    name: str,
    stages: dict[str, Stage],
    truth: Stage,
    facts: dict[str, Any],
    failure: str | None,
) -> Measurement:
    shape = f"{len(program.media.frames)} frames{' of a file' if program.media.of_files else ''}"
    shape += ", pasted back" if subject == "loop" and program.pastes else ""
    result = Measurement("programs", subject, shape, 1, name, PRECISION[context.device.type], "ok")
    result.extras = dict(facts) | ({"note": _note(program, facts["missing"])} if subject == "loop" else {})
    if name not in stages:
        result.status, result.reason = "refused", failure
        return result
    times, answer = stages[name].times[subject], stages[name].answers[subject]
    original = stages["original"]
    result.timing, result.samples, result.drift = "wall clock", len(times), drift(times)
    result.median_ms = quantile(times, 0.5)
    result.p20_ms, result.p80_ms, result.p99_ms = (quantile(times, part) for part in (0.2, 0.8, 0.99))
    result.relative_error = relative_error(answer.float(), truth.answers[subject].float())
    result.extras["same_as_original"] = same = torch.equal(answer, original.answers[subject])
    result.extras["speedup"] = quantile(original.times[subject], 0.5) / result.median_ms
    own = relative_error(original.answers[subject].float(), truth.answers[subject].float())
    result.tolerance = max(TOLERANCE_FACTOR * own, TOLERANCE_FLOOR[result.precision], EIGHT_BIT_FLOOR)
    if name == "restored" and not same:
        refuse(result, "its answers are not those of before")
    elif not result.relative_error <= result.tolerance:
        refuse(result, f"relative error {result.relative_error:.2e} exceeds {result.tolerance:.2e}")
    return result


@dataclass(frozen=True)
class Inputs:
    """What the networks are given in every state, on the program's device, in float32.

    Attributes:
        images: of the driving frames, each (1, 3, 256, 256), 0 to 1.
        volume: the source's features.
        x_s, x_d: the source's keypoints, and those of each driving frame, (1, K, 3).
    """

    images: list[Tensor]
    volume: Tensor
    x_s: Tensor
    x_d: list[Tensor]

    @classmethod
    def of(cls, program: Program) -> Inputs:
        """By the program's own networks, in their present state."""
        wrapper = program.wrapper
        images = [wrapper.prepare_videos([frame])[0] for frame in program.media.frames]
        source = wrapper.prepare_source(program.media.source)
        x_s, *x_d = (wrapper.transform_keypoint(wrapper.get_kp_info(image)) for image in (source, *images))
        return cls(images, wrapper.extract_feature_3d(source), x_s, x_d)


def run(program: Program, inputs: Inputs, sampler: Sampler) -> Stage:
    """Time M, W and G together, and every frame of the loops; each after a few calls that are not timed."""
    wrapper, stage = program.wrapper, Stage()

    def warp_decode(x_d: Tensor) -> Any:
        return wrapper.warp_decode(inputs.volume, inputs.x_s, x_d)

    networks: dict[str, tuple[Callable[[Tensor], Any], list[Tensor], Callable[[Any], Tensor]]] = {
        "M": (wrapper.get_kp_info, inputs.images, wrapper.transform_keypoint),
        "W+G": (warp_decode, inputs.x_d, lambda answer: answer["out"]),
    }
    for name, (call, given, compared) in networks.items():
        stage.answers[name] = torch.cat([compared(call(one)).cpu() for one in given])  # which makes it warm, too
        sample = sampler.prepare(call, [(one,) for one in given])
        stage.times[name] = [sample(index) for index in range(len(given))]
    program.execute(WARM_UP)
    stage.times["loop"], pictures = program.execute()
    stage.answers["loop"] = torch.from_numpy(np.stack(pictures))
    return stage


def _in_fp32(program: Program, sampler: Sampler) -> tuple[Inputs, Stage]:
    """The networks' inputs, and the truth: the program's own arithmetic without autocast and TF32."""
    settings = program.wrapper.inference_cfg
    half, settings.flag_use_half_precision = settings.flag_use_half_precision, False
    try:
        with strict_fp32():
            inputs = Inputs.of(program)
            return inputs, run(program, inputs, sampler)
    finally:
        settings.flag_use_half_precision = half


def _note(program: Program, missing: list[str]) -> str:
    """What was not run, and what was stood in for."""
    notes = ["files, face detection and encoding replaced by pictures in memory"]
    if not program.pastes:
        notes.append("no paste-back: cv2 is not installed")
    if missing:
        notes.append(f"not installed and stood in for: {', '.join(missing)}")
    return "; ".join(notes)
