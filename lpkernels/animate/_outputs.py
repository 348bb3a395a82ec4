"""What a run writes: the animated video or picture, the side-by-side one, the motion template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lpkernels.animate._files import PendingFile
from lpkernels.animate._panels import SideBySide
from lpkernels.animate.image import Frame, check_image_output, save_image
from lpkernels.animate.video import VideoWriter, check_video_output
from lpkernels.errors import InputError

_TEMPLATE_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Outputs:
    """The files to write; ``still`` when one picture drives, and pictures are written instead of videos."""

    animated: Path
    side_by_side: Path | None = None
    template: Path | None = None
    still: bool = False

    def check(self, *inputs: Path) -> None:
        """Report what could not be written in the end before any work is done.

        Raises:
            InputError: a suffix does not fit, a folder does not exist, or two files are the same.
            LpkernelsError: a folder cannot be written to.
        """
        pictures = [path for path in (self.animated, self.side_by_side) if path is not None]
        for path in pictures:
            (check_image_output if self.still else check_video_output)(path)
        if self.template is not None and self.template.suffix.lower() != _TEMPLATE_SUFFIX:
            raise InputError(f"{self.template} must end in {_TEMPLATE_SUFFIX} to hold a motion template")
        taken = {path.resolve() for path in inputs}
        for path in [*pictures, *([self.template] if self.template is not None else [])]:
            if path.resolve() in taken:
                raise InputError(f"{path} is named twice: inputs and outputs must be different files")
            taken.add(path.resolve())
            PendingFile(path).discard()

    @contextmanager
    def open(
        self, fps: Fraction | float, size: tuple[int, int], panel: int, source: Frame, audio_from: Path | None
    ) -> Iterator[Writer]:
        """A writer of frames of ``size`` (width, height), and of rows that are ``panel`` pixels high.

        The files get their names when the block ends well.
        """
        with ExitStack() as stack:
            yield Writer(self, stack, fps, size, panel, source, audio_from)


class Writer:
    """Writes each animated frame, alone and beside the pictures it was made from."""

    def __init__(
        self,
        outputs: Outputs,
        stack: ExitStack,
        fps: Fraction | float,
        size: tuple[int, int],
        panel: int,
        source: Frame,
        audio_from: Path | None,
    ) -> None:
        self._outputs, self._stack, self._fps = outputs, stack, fps
        self._audio_from = audio_from
        self._source = source
        self._panels = SideBySide(panel)
        self._side: VideoWriter | None = None
        self._animated: VideoWriter | None = None
        if not outputs.still:
            self._animated = stack.enter_context(VideoWriter(outputs.animated, fps, size, audio_from=audio_from))

    def write(self, driving: Frame | None, animated: Frame, source: Frame | None = None) -> None:
        """Append a frame; ``driving`` is None where a template drives, ``source`` None where it is the same as ever."""
        if self._animated is None:
            save_image(self._outputs.animated, animated)
        else:
            self._animated.write(animated)
        if self._outputs.side_by_side is None:
            return
        source = self._source if source is None else source
        row = (source, animated) if driving is None else (driving, source, animated)
        joined = self._panels.join(*row)
        if self._outputs.still:
            save_image(self._outputs.side_by_side, joined)
            return
        if self._side is None:  # its width is known with the first row
            writer = VideoWriter(
                self._outputs.side_by_side, self._fps, joined.shape[1::-1], audio_from=self._audio_from
            )
            self._side = self._stack.enter_context(writer)
        self._side.write(joined)
