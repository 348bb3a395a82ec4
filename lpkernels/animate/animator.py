"""What animates: one source picture, driving frames in, animated frames out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from lpkernels import _checks, trace
from lpkernels.animate._jobs import Item, Job, Jobs, overlapped
from lpkernels.animate.engine import FrameEngine, Rows
from lpkernels.animate.image import Frame, Picture, check_frame, check_frames
from lpkernels.animate.motion import Motion
from lpkernels.animate.retarget import MotionOptions
from lpkernels.animate.source import Source, SourceCrop, prepare_source
from lpkernels.animate.template import MotionTemplate
from lpkernels.errors import InputError
from lpkernels.models.portrait_model import PortraitModel

AHEAD = 2  # frames that ``run`` reads ahead on a GPU: one in each direction beside the one that is computed


class Animator:
    """Animates one source picture, frame by frame, with bounded memory.

    With relative motion (the default) the first driving frame is remembered, and what moves the source is each frame's
    change since then: start with a frame whose expression is like the source's, usually a neutral one.

    >>> animator = Animator(model, "portrait.jpg")
    >>> for frame in animator.run(frames):  # uint8 RGB in, uint8 RGB out
    ...     show(frame)

    On a GPU a frame is one CUDA graph, recorded when the first frame of a size comes, or by ``warm_up``; see
    ``FrameEngine`` for what needs another. Any number of animators may share a model, one to a thread;
    one animator serves one thread at a time. Frames of arrays run on a stream of the animator's own. Frames of CUDA
    tensors run on the caller's current stream, which may be another for each: threads that pass them and shall overlap
    need a stream each, and such a stream must last as long as the animator.

    Args:
        model: on any device, in any compute dtype; with the networks as published or rebuilt (``lpkernels.optimize``).
        source: uint8 (H, W, 3) RGB array or tensor, the path of a picture, or what ``prepare_source`` made of one.
        options: how driving motion moves the source; may be assigned later.
        crop: box of the source around the face: x, y, width, height in pixels; a ``Crop``, such as
            ``crop_from_landmarks`` gives; or ``"auto"``: around the largest face, found with the extra
            ``lpkernels[face]``. Without it the whole picture is squeezed into a square. Several faces, animated as one
            batch and pasted back: ``"all"``, or a list of boxes and crops.
        paste_back: answer with the whole picture, the animated crop in its place, rather than with the square alone.
        graph: record frames as CUDA graphs. None: where there is a GPU. Without, the same work is launched kernel by
            kernel: slower, for profiling with named ranges and for models that wait for the device.

    Raises:
        InputError: the picture cannot be read, the crop leaves it or no face was found; a ``Crop`` that shall be pasted
            back has not the model's output size; ``graph`` without a GPU.
        TypeError, ValueError: the array is not a picture.
    """

    def __init__(
        self,
        model: PortraitModel[Any],
        source: Frame | Tensor | str | Path | Source,
        *,
        options: MotionOptions | None = None,
        crop: SourceCrop | None = None,
        paste_back: bool = False,
        graph: bool | None = None,
    ) -> None:
        self.model = model
        self._options = options if options is not None else MotionOptions()
        self._paste_back = paste_back
        self._source = self._prepared(source, crop)
        self.check_source(self._source)
        self._engine = FrameEngine(model, self._options, self._source, graph=graph)
        self._jobs = Jobs(self._engine, model.config.output_size)
        self._jobs.paste_into(self._source.paste if paste_back else None)
        self._lock = threading.RLock()
        self._driving: Motion | Rows | None = None

    @property
    def source(self) -> Source:
        """The prepared source picture."""
        return self._source

    @property
    def options(self) -> MotionOptions:
        """How driving motion moves the source. Assigning others makes the next frame of each size warm up again."""
        return self._options

    @options.setter
    def options(self, options: MotionOptions) -> None:
        with self._lock:
            self._engine.set_options(options)
            self._options = options

    @property
    def output_size(self) -> int:
        """Side in pixels of the square that the model draws."""
        return self.model.config.output_size

    @property
    def paste_back(self) -> bool:
        """Whether frames are whole pictures rather than squares."""
        return self._paste_back

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the output frames in pixels: of the source picture where crops are pasted back."""
        paste = self._source.paste if self._paste_back else None
        return (self.output_size, self.output_size) if paste is None else paste.size

    @property
    def driving_motion(self) -> Motion | None:
        """The motion of the latest driving frame (of ``run``: of the one yielded last); None before the first."""
        with self._lock:
            if isinstance(self._driving, Rows):
                self._driving = self._engine.read(self._driving)
            return self._driving

    @property
    def warm_up_seconds(self) -> float:
        """Wall-clock time spent so far on preparing for sizes of frames, a part of which was their first frame's."""
        return self._engine.warm_up_seconds

    def warm_up(self, size: tuple[int, int] | None = None) -> float:
        """Prepare for driving frames of one size now rather than at the first of them: a frame is run and recorded.

        Args:
            size: height and width in pixels; the model's input size when None.

        Returns:
            Seconds that it took, about zero if it was done before.

        Raises:
            InputError: a side under one pixel.
            LpkernelsError: the frame cannot be recorded.
        """
        given = size if size is not None else (self.model.config.image_size,) * 2
        height, width = _checks.integers("size", given, "height", "width")
        if min(height, width) < 1:
            raise InputError(f"size must be a height and width of at least 1, got {size}")
        with self._lock:
            before = self.warm_up_seconds
            self._engine.warm_up(self._engine.plan_pictures(1, height, width))
            return self.warm_up_seconds - before

    def set_source(self, source: Frame | Tensor | str | Path | Source, crop: SourceCrop | None = None) -> None:
        """Animate another picture from the next frame on; the first driving frame stays the reference.

        A ``Source`` that ``prepare_source`` made with the same model is taken over without running F and M. Where crops
        are pasted back, frames have the new picture's size from then on.

        Raises:
            InputError, TypeError, ValueError: as for a new animator; a ``crop`` of a Source, which is cropped already;
                a Source without its whole picture where crops are pasted back; another number of faces.
        """
        prepared = self._prepared(source, crop)
        self.check_source(prepared)
        with self._lock:
            self._engine.set_source(prepared)
            self._jobs.paste_into(prepared.paste if self._paste_back else None)
            self._source = prepared

    def check_source(self, source: Source) -> None:
        """Raise InputError unless ``set_source`` would take a prepared source."""
        if self._paste_back and source.paste is None:
            raise InputError("source must hold its whole picture to be pasted back: prepare_source(paste_back=True)")
        if source.faces != self._source.faces:
            raise InputError(f"source must have {self._source.faces} faces, as the one before; got {source.faces}")

    def reset(self) -> None:
        """Forget the first driving frame: the next one becomes the reference of relative motion."""
        with self._lock:
            self._engine.reset()
            self._driving = None

    def step(self, frame: Picture, eye_ratio: float | None = None, lip_ratio: float | None = None) -> Picture:
        """Animate one driving frame.

        Args:
            frame: uint8 (H, W, 3), RGB, any size; a NumPy array, or a tensor on any device.
            eye_ratio, lip_ratio: openings wanted of the source's eyes and lips, when the options retarget them.

        Returns:
            uint8 (H, W, 3), RGB, of ``frame_size``: an array for an array, a tensor on the model's device for a
            tensor. Nothing waits for the device where both are on it.

        Raises:
            TypeError, ValueError: ``frame`` is not such a picture.
            InputError: the options retarget eyes or lips and their ratio is not given.
            LpkernelsError: the frame cannot be recorded as a CUDA graph.
        """
        check_frame("frame", frame)
        with trace.range("frame", "frame"):
            picture: Picture = self._finish(self._start(frame[None], eye_ratio, lip_ratio, alone=True))[0]
            return picture

    def step_batch(self, frames: Picture, eye_ratio: float | None = None, lip_ratio: float | None = None) -> Picture:
        """Animate consecutive driving frames at once: (B, h, w, 3) to (B, H, W, 3); otherwise as ``step``.

        A source of several faces takes one frame at a time: InputError for more.
        """
        check_frames("frames", frames)
        batch = frames.shape[0]
        if batch > 1 and self._source.faces > 1:
            raise InputError(f"frames must be one frame for a source of several faces, got {batch}")
        with trace.range("frame", "frame", batch=batch):
            pictures: Picture = self._finish(self._start(frames, eye_ratio, lip_ratio, alone=True))
            return pictures

    def step_motion(self, motion: Motion, eye_ratio: float | None = None, lip_ratio: float | None = None) -> Tensor:
        """Animate with a motion that is known already, such as a template's.

        Args:
            motion: one frame (batch 1), on any device; ``kp`` is not needed.

        Returns:
            uint8 (H, W, 3) tensor on the model's device.

        Raises:
            InputError: the motion is of another number of keypoints, or as ``step``.
        """
        with trace.range("frame", "frame"):
            picture: Tensor = self._finish(self._start_motion(motion, False, eye_ratio, lip_ratio))[0]
            return picture

    def run(self, frames: Iterable[Picture], ahead: int | None = None) -> Iterator[Picture]:
        """Animate driving frames as they come: a generator that holds few frames at a time. Arguments as ``step``.

        An error in the source of frames, or a frame that is none, is raised after the frames before it were yielded.

        Args:
            ahead: frames read before the result of an earlier one is waited for, so that copies to and from a GPU
                overlap with its work: 0 for a live source, where no result shall wait for the next frame. None: 2 on a
                GPU, else 0.

        Raises:
            InputError: ``ahead`` is negative.
        """

        def start(frame: Picture) -> Job:
            check_frame("frame", frame)
            return self._start(frame[None], alone=ahead == 0)

        return self._overlapped(frames, start, ahead)

    def run_template(self, template: MotionTemplate) -> Iterator[Frame]:
        """Animate with a motion template, from its first frame; yields arrays as ``step`` does."""
        self.reset()
        yield from self._overlapped(template.motions(), lambda motion: self._start_motion(motion, True), None)

    def run_sources(self, frames: Iterable[tuple[Source, Motion]]) -> Iterator[Frame]:
        """Animate sources that change from frame to frame, as a video's: each takes a motion of its own as it is.

        Args:
            frames: a source (batch 1) and the rotation, expression, translation and scale it gets, batch 1; the
                options add the multiplier and stitching.

        Yields:
            Arrays as ``step`` gives.

        Raises:
            InputError: options other than relative and pose-friendly, in the region "all" and without retargeting; a
                source as for ``set_source``; a motion as for ``step_motion``.
        """
        plain = MotionOptions(driving_multiplier=self._options.driving_multiplier, stitching=self._options.stitching)
        if self._options != plain:
            raise InputError(f"options must be MotionOptions() but for multiplier and stitching, got {self._options}")

        def start(frame: tuple[Source, Motion]) -> Job:
            source, motion = frame
            with self._lock:
                self.set_source(source)
                self._engine.set_first(source.motion)  # from the source's own motion to the new one
                return self._start_motion(motion, True)

        return self._overlapped(frames, start, None)

    def _prepared(self, source: Frame | Tensor | str | Path | Source, crop: SourceCrop | None) -> Source:
        """A source of this animator's model."""
        if not isinstance(source, Source):
            return prepare_source(self.model, source, crop, self._paste_back)
        if crop is not None:
            raise InputError("crop: a prepared Source is cropped already; pass the crop to prepare_source")
        return source

    def _overlapped(self, items: Iterable[Item], start: Callable[[Item], Job], ahead: int | None) -> Iterator[Any]:
        if ahead is None:
            ahead = AHEAD if self._engine.lane.stream is not None else 0
        if ahead < 0:
            raise InputError(f"ahead must be 0 or more, got {ahead}")

        def start_one(item: Item) -> Job:
            with trace.range("frame", "frame"):
                return start(item)

        return overlapped(items, start_one, lambda job: self._finish(job)[0], ahead)

    def _start(
        self, frames: Frame | Tensor, eye_ratio: float | None = None, lip_ratio: float | None = None, *, alone: bool
    ) -> Job:
        """Start a batch of checked frames; ``alone``: they are finished before the next are started."""
        self._options.check_ratios(eye_ratio, lip_ratio)
        with self._lock:
            self._engine.keep(unless=self._driving)
            return self._jobs.pictures(frames, eye_ratio, lip_ratio, alone)

    def _start_motion(
        self, motion: Motion, to_host: bool, eye_ratio: float | None = None, lip_ratio: float | None = None
    ) -> Job:
        expected = (1, *self._source.motion.exp.shape[1:])
        if tuple(motion.exp.shape) != expected:
            raise InputError(f"the driving motion's exp must have shape {expected}, got {tuple(motion.exp.shape)}")
        self._options.check_ratios(eye_ratio, lip_ratio)
        with self._lock:
            self._engine.keep(unless=self._driving)
            return self._jobs.motion(motion, eye_ratio, lip_ratio, to_host)

    def _finish(self, job: Job) -> Any:
        """Wait for a frame's pictures; its motion is the latest now."""
        pictures = job.result()
        self._driving = job.driving
        return pictures
