"""The frame engine: fixed buffers, and every frame one CUDA graph."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpkernels import ops
from lpkernels.animate._graph import Call, GraphRecorder
from lpkernels.animate._lane import Lane
from lpkernels.animate._plan import Buffers, FramePlan, make_path, pack
from lpkernels.animate.motion import Motion
from lpkernels.animate.retarget import MotionOptions, convex_hull_multiplier
from lpkernels.animate.source import Source
from lpkernels.errors import InputError
from lpkernels.models.portrait_model import PortraitModel

Record = Callable[[Call], Call]
"""Runs a call for the first time and gives one that repeats it in the same memory."""

PLANS = 4  # input sizes kept
_MOTION = "motion"


@dataclass(eq=False)
class Rows:
    """One frame's driving motion, and its canonical keypoints where a picture drove: the last rows of both tensors.

    Attributes:
        motion: packed, (B, 3K + 13).
        kp: (B, at least 3K), keypoints last.
        borrowed: both lie in a recorded frame's memory, which the engine's next frame overwrites: see ``keep``.
    """

    motion: Tensor
    kp: Tensor | None
    borrowed: bool = False

    def last(self, num_kp: int) -> tuple[Tensor, Tensor | None]:
        """Motion (1, 3K + 13) and keypoints (1, 3K)."""
        return self.motion[-1:], None if self.kp is None else self.kp[-1:, -3 * num_kp :]


class FrameEngine:
    """Runs frames of one source, one after the other, and remembers the first.

    The source, the first frame's motion and the frame's numbers lie in buffers whose addresses never change, so another
    source, clip or opening of the eyes needs no new graph. Another input size does, with its own input buffer: resizing
    belongs to the frame, and a graph costs less than launching its kernels one by one before each. The least recently
    used size makes room. Other options need new graphs, because they choose kernels.

    Graphs keep what held when they were recorded: the backends of ops, cuDNN's and TF32's switches.

    Args:
        model: shared with other engines; nothing in it is written.
        graph: record frames; None: on a GPU.
        record: how, for tests; None: as CUDA graphs.

    Attributes:
        lane: the streams.
        captures: frames recorded so far.
        warm_up_seconds: time spent on them, wall clock.

    Raises:
        InputError: ``graph`` without a GPU.
    """

    def __init__(
        self,
        model: PortraitModel[Any],
        options: MotionOptions,
        source: Source,
        *,
        graph: bool | None = None,
        record: Record | None = None,
    ) -> None:
        self.lane = Lane(model.device)
        self.lane.settle_before(self)
        if graph and record is None and self.lane.stream is None:
            raise InputError(f"graph=True needs a model on a CUDA device, got {model.device}; leave graph out")
        if record is None and self.lane.stream is not None and graph is not False:
            record = GraphRecorder(self.lane.stream)
        self.captures = 0
        self.warm_up_seconds = 0.0
        self._model, self._record = model, record
        self._plans: OrderedDict[tuple[int | str, ...], FramePlan] = OrderedDict()
        self._latest: FramePlan | None = None
        self._rows: Rows | None = None
        self._numbers: dict[str, float] = {}
        self._first_known = self._multiplier_known = False
        self._source = source
        with self._working():
            self._buffers = Buffers.of(model, source)
        self._choose(options)

    @property
    def records(self) -> bool:
        """Whether frames are recorded and replayed rather than called."""
        return self._record is not None

    def set_source(self, source: Source) -> None:
        """Animate another source, of as many faces, from the next frame on; the first frame stays what it is."""
        with self._working():
            self._buffers.load(self._model, source)
        self._source, self._multiplier_known = source, False

    def set_options(self, options: MotionOptions) -> None:
        """Move the source in another way from the next frame on, with new plans."""
        self.lane.synchronize()
        self._plans.clear()
        self._latest, self._multiplier_known = None, False
        self._choose(options)

    def reset(self) -> None:
        """The next frame is the first."""
        self._first_known = self._multiplier_known = False

    def set_first(self, motion: Motion) -> None:
        """Make a known motion, of batch 1, what relative motion counts from."""
        with self._working():
            self._buffers.first.copy_(pack(motion))
        self._first_known, self._multiplier_known = True, False

    def plan_pictures(self, batch: int, height: int, width: int) -> FramePlan:
        """The plan for uint8 driving pictures (batch, height, width, 3), recorded where frames are."""
        return self._plan((batch, height, width))

    def plan_motions(self, batch: int) -> FramePlan:
        """The plan for packed motions (batch, 3K + 13)."""
        return self._plan((_MOTION, batch))

    def run(self, plan: FramePlan, eye_ratio: float | None = None, lip_ratio: float | None = None) -> None:
        """Animate what lies in ``plan.inputs``; the answer is in ``plan.output``, in order with the lane's work.

        The host waits for the device only where expression-friendly motion measures a first frame or a new source.

        Raises:
            InputError: a ratio is missing that the options call for, or out of range.
            LpkernelsError: see ``convex_hull_multiplier``.
        """
        self._options.check_ratios(eye_ratio, lip_ratio)
        with self.lane.inside():
            self.launch(plan, eye_ratio, lip_ratio)

    def launch(self, plan: FramePlan, eye_ratio: float | None = None, lip_ratio: float | None = None) -> None:
        """``run`` for who is in the lane already, on any stream, with ratios that are checked."""
        if plan.replay is not None and self._prepared(eye_ratio, lip_ratio):
            plan.replay()
        else:
            with _plain():
                self._prepare_and_run(plan, eye_ratio, lip_ratio)
        self._latest = plan

    def rows(self) -> Rows | None:
        """The latest frame's driving motion (of the last of a batch); None before one ran. Nothing is copied yet."""
        plan = self._latest
        if plan is None:
            return None
        self._rows = Rows(plan.motion, plan.heads if plan.of_pictures else None, borrowed=plan.replay is not None)
        return self._rows

    def keep(self, unless: object = None) -> None:
        """Before another frame: copy what ``rows`` gave last, on the stream it lies on, if it would be overwritten.

        Args:
            unless: rows that the next frame's take the place of. They are kept only where that frame may fail between
                writing its motion and its picture: where it measures expression-friendly motion.
        """
        rows, self._rows = self._rows, None
        if rows is None or not rows.borrowed or (rows is unless and not self._options.expression_friendly):
            return
        with self.lane.latest(), _plain():
            motion, kp = rows.last(self._model.config.num_kp)
            rows.motion, rows.kp = motion.clone(), None if kp is None else kp.clone()
        rows.borrowed = False

    def read(self, rows: Rows) -> Motion:
        """What ``rows`` hold, for the caller's stream; they are not needed after it."""
        if self._rows is rows:
            self._rows = None
        motion, kp = rows.last(self._model.config.num_kp)
        with self.lane.here():
            if motion.is_cuda and not rows.borrowed:  # made on the stream of its frame, which may be another
                for tensor in (motion, kp):
                    if tensor is not None:
                        tensor.record_stream(torch.cuda.current_stream())
            motion, kp = motion.clone(), None if kp is None else kp.clone()
        exp, R, t, scale = ops.unpack_motion(motion)
        return Motion(None if kp is None else kp.reshape(exp.shape), exp, R, t, scale)

    def warm_up(self, plan: FramePlan) -> None:
        """Run a plan that is not recorded once, on whatever lies in its input; a recorded one is warm."""
        if plan.replay is not None:
            return
        start = time.perf_counter()
        with self.lane.inside(), _plain():
            plan.run()
        self.lane.synchronize()
        self.warm_up_seconds += time.perf_counter() - start

    def _choose(self, options: MotionOptions) -> None:
        with self._working():
            self._path = make_path(self._model, options)
        self._options = options

    def _plan(self, key: tuple[int | str, ...]) -> FramePlan:
        known = self._plans.get(key)
        if known is not None:
            self._plans.move_to_end(key)
            return known
        start = time.perf_counter()
        with self._working():
            plan = FramePlan(self._model, self._path, self._options, self._buffers, self._input(key))
            if self._record is not None:
                plan.replay = self._record(plan.run)
                self.captures += 1
        self.warm_up_seconds += time.perf_counter() - start
        if len(self._plans) == PLANS:
            self.lane.synchronize()  # the oldest may still run
            self._plans.popitem(last=False)
        self._plans[key] = plan
        return plan

    def _input(self, key: tuple[int | str, ...]) -> Tensor:
        """A new input buffer that holds a picture, or a motion, that does no harm."""
        if key[0] == _MOTION:
            return self._buffers.keypoints.motion[:1].repeat(int(key[1]), 1)
        return torch.zeros(*(int(size) for size in key), 3, dtype=torch.uint8, device=self._model.device)

    def _prepared(self, eye_ratio: float | None, lip_ratio: float | None) -> bool:
        """Whether the buffers hold all that a frame reads beside its input."""
        return (
            self._first_known
            and (self._multiplier_known or not self._options.expression_friendly)
            and (eye_ratio is None or self._numbers.get("eye_ratio") == eye_ratio)
            and (lip_ratio is None or self._numbers.get("lip_ratio") == lip_ratio)
        )

    def _prepare_and_run(self, plan: FramePlan, eye_ratio: float | None, lip_ratio: float | None) -> None:
        self._set("eye_ratio", eye_ratio)
        self._set("lip_ratio", lip_ratio)
        if plan.replay is None:
            plan.read()
        if self._options.relative and not self._first_known:
            # Its motion is an answer of the frame that counts from it: a recorded frame runs twice, once in a clip.
            (plan.replay or plan.move)()
            self._remember(plan)
        self._measure()
        if plan.replay is not None:
            plan.replay()
        else:
            plan.move()
            plan.draw()
        if not self._first_known:
            self._remember(plan)

    def _remember(self, plan: FramePlan) -> None:
        """Make the plan's first motion what relative motion counts from."""
        self._buffers.first.copy_(plan.motion[:1])
        self._measure(anew=True)
        self._first_known = True

    def _measure(self, anew: bool = False) -> None:
        """See to the multiplier of expression-friendly motion: on the host, once for a clip and source."""
        if not self._options.expression_friendly or (self._multiplier_known and not anew):
            return
        first = Motion(None, *ops.unpack_motion(self._buffers.first.expand(self._source.faces, -1)))
        value = convex_hull_multiplier(self._source.motion, self._source.x_s, first, self._options)
        self._buffers.multiplier.copy_(value.reshape(-1))
        self._multiplier_known = True

    def _set(self, name: str, value: float | None) -> None:
        if value is not None and self._numbers.get(name) != value:
            getattr(self._buffers, name).fill_(value)
            self._numbers[name] = value

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """On the lane's stream, after and before the caller's work, with tensors that may be written at any time."""
        with self.lane.joined(), _plain():
            yield


def _plain() -> contextlib.AbstractContextManager[object]:
    """No gradients, and tensors that may be written later, whatever mode the caller is in."""
    return _no_inference() if torch.is_inference_mode_enabled() else torch.no_grad()


@contextlib.contextmanager
def _no_inference() -> Iterator[None]:
    with torch.inference_mode(False), torch.no_grad():
        yield
