"""A run over a source video: its frames and the driving ones side by side."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lpkernels.animate._audio import AudioTrack
from lpkernels.animate._driving import Driving
from lpkernels.animate._outputs import Outputs
from lpkernels.animate._run import Progress, Run
from lpkernels.animate._source_video import SourceVideo, combined_motion, options_for
from lpkernels.animate.animator import Animator
from lpkernels.animate.extract import collect_template, network_input, read_motion
from lpkernels.animate.image import Frame
from lpkernels.animate.motion import Motion
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.source import Source
from lpkernels.animate.template import MotionTemplate
from lpkernels.animate.template import save_template as write_template
from lpkernels.models.portrait_model import PortraitModel


class VideoRun(Run):
    """Both clips are read for their motion, then the source again for its pictures."""

    def __init__(self, model: PortraitModel[Any], options: MotionOptions, progress: Progress | None) -> None:
        super().__init__(progress)
        self._model, self._wanted, self._options = model, options, options_for(options)

    def animate_video(self, video: SourceVideo, clip: Driving, outputs: Outputs, audio: bool) -> None:
        """Animate the frames of a video.

        Raises:
            InputError: see ``options_for``, ``combined_motion`` and ``SourceVideo.follow``.
        """
        counts = [count for count in (video.frame_count, None if _one(clip) else clip.frame_count) if count]
        if counts:
            self._total = min(counts) * (3 if video.follows_face else 2)
        if video.follows_face:
            video.follow(self._step, None if _one(clip) else clip.frame_count)
        own, driving = self._read_both(video, clip)
        if outputs.template is not None:
            write_template(outputs.template, driving if clip.template is None else clip.template)
            self._template_kept = True
        moved = combined_motion(own, driving, self._wanted)
        sources = video.sources(own)
        first = next(sources)
        animator = Animator(self._model, first, options=self._options, paste_back=first.paste is not None)
        height, width = animator.frame_size
        heard = _sound(video.path, clip) if audio else None
        with outputs.open(video.fps, (width, height), animator.output_size, first.whole, heard) as writer:
            shown = self._shown(clip) if outputs.side_by_side is not None else itertools.repeat(None)
            waiting: deque[Frame] = deque()  # the animator reads ahead

            def paired() -> Iterator[tuple[Source, Motion]]:
                for source, motion in zip(itertools.chain([first], sources), moved.motions(), strict=False):
                    if outputs.side_by_side is not None:
                        waiting.append(source.whole)
                    yield source, motion

            for picture, animated in zip(shown, animator.run_sources(paired()), strict=False):
                writer.write(picture, animated, waiting.popleft() if waiting else None)
                self.written += 1
                self._step()

    def _read_both(self, video: SourceVideo, clip: Driving) -> tuple[MotionTemplate, MotionTemplate]:
        """The motions of the source and of what drives it, of one length unless one frame drives."""
        own: list[Motion] = []
        driving: list[Motion] = []
        pairs = zip(self._driving(clip), video.motions(None), strict=False)
        for driven, motion in pairs:
            driving.append(driven.to("cpu"))
            own.append(motion.to("cpu"))
            self._step()
        driving = driving[:1] if _one(clip) else driving
        read = collect_template(driving, clip.fps) if clip.template is None else clip.template.head(len(driving))
        return collect_template(own, video.fps), read

    def _driving(self, clip: Driving) -> Iterator[Motion]:
        if clip.template is not None:
            motions = clip.template.motions()
        else:
            motions = (read_motion(self._model, network_input(self._model, "frame", frame)) for frame in clip.frames())
        return itertools.repeat(next(motions)) if _one(clip) else motions

    def _shown(self, clip: Driving) -> Iterator[Frame | None]:
        if clip.template is not None:
            return itertools.repeat(None)
        return itertools.repeat(next(clip.frames())) if clip.still else clip.frames()


def _one(clip: Driving) -> bool:
    """Whether one frame drives all of the source."""
    return clip.still or (clip.template is not None and clip.template.n_frames == 1)


def _sound(source: Path, clip: Driving) -> Path | None:
    """The file whose sound the result gets: what drives comes first, as in the original."""
    for path in (None if clip.still or clip.template is not None else clip.path, source):
        if path is not None and AudioTrack.is_in(path):
            return path
    return None
