"""Runs: whole clips through an animator into files, with progress, and what to tell where they are stopped."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lpkernels.animate._driving import Driving
from lpkernels.animate._outputs import Outputs
from lpkernels.animate.animator import Animator
from lpkernels.animate.extract import collect_template, network_input, read_motion
from lpkernels.animate.image import Frame
from lpkernels.animate.motion import Motion
from lpkernels.animate.smoothing import smooth as smooth_template
from lpkernels.animate.template import MotionTemplate
from lpkernels.animate.template import save_template as write_template

Progress = Callable[[int, int | None], None]
"""Called after each frame with the number done and the number in all (None: unknown)."""


class Run:
    """One pass over a driving file, or two when the motion is smoothed in between."""

    def __init__(self, progress: Progress | None) -> None:
        self.eyes: Iterable[float | None] = itertools.repeat(None)
        self.lips: Iterable[float | None] = itertools.repeat(None)
        self.retargets = False
        self.written = 0
        self._progress = progress
        self._done = 0
        self._total: int | None = None
        self._template_kept = False

    def animate(
        self, animator: Animator, clip: Driving, outputs: Outputs, smooth: bool, audio_from: Path | None
    ) -> None:
        """Animate one picture."""
        template, read_twice = clip.template, smooth and clip.template is None
        self._total = clip.frame_count and clip.frame_count * (2 if read_twice else 1)
        if read_twice:
            template = collect_template(self._read(animator, clip), clip.fps)
        if template is not None and outputs.template is not None:
            write_template(outputs.template, template)
            self._template_kept = True
        if template is not None and smooth:
            template = smooth_template(template)
        motions: list[Motion] | None = [] if template is None and outputs.template is not None else None
        height, width = animator.frame_size
        source = animator.source.whole
        with outputs.open(clip.fps, (width, height), animator.output_size, source, audio_from) as writer:
            for picture, animated in self._frames(animator, clip, template, outputs.side_by_side is not None):
                writer.write(picture, animated)
                if motions is not None and animator.driving_motion is not None:
                    motions.append(animator.driving_motion.to("cpu"))
                self.written += 1
                self._step()
            if motions is not None and outputs.template is not None:
                write_template(outputs.template, collect_template(motions, clip.fps))

    def stopped(self, outputs: Outputs) -> str:
        """What to tell after Ctrl-C."""
        of = f" of {self._total}" if self._total else ""
        kept = f"kept: {outputs.template}" if self._template_kept else "nothing was kept"
        return f"stopped after {self._done}{of} frames; {outputs.animated} was not written, {kept}"

    def _frames(
        self, animator: Animator, clip: Driving, template: MotionTemplate | None, pictures: bool
    ) -> Iterator[tuple[Frame | None, Frame]]:
        """(driving picture where ``pictures``, animated frame), frame by frame."""
        if template is None:
            return self._by_pictures(animator, clip, pictures)
        shown: Iterable[Frame | None] = itertools.repeat(None)
        if pictures and clip.template is None:
            shown = clip.frames()
        return zip(shown, self._by_motions(animator, template), strict=False)

    def _by_pictures(self, animator: Animator, clip: Driving, pictures: bool) -> Iterator[tuple[Frame | None, Frame]]:
        if self.retargets:
            for picture, eye, lip in zip(clip.frames(), self.eyes, self.lips, strict=False):
                yield picture, animator.step(picture, eye, lip)
            return
        waiting: deque[Frame] = deque()  # the animator reads ahead: the pictures whose frames it has not given yet

        def read() -> Iterator[Frame]:
            for picture in clip.frames():
                if pictures:
                    waiting.append(picture)
                yield picture

        for animated in animator.run(read()):
            yield (waiting.popleft() if pictures else None), animated

    def _by_motions(self, animator: Animator, template: MotionTemplate) -> Iterator[Frame]:
        if not self.retargets:
            return animator.run_template(template)
        motions = zip(template.motions(), self.eyes, self.lips, strict=False)
        return (animator.step_motion(motion, eye, lip).cpu().numpy() for motion, eye, lip in motions)

    def _read(self, animator: Animator, clip: Driving) -> Iterator[Motion]:
        for frame in clip.frames():
            yield read_motion(animator.model, network_input(animator.model, "frame", frame))
            self._step()

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
