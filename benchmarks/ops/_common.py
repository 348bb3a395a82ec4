"""What op benchmarks share: PyTorch's own providers of a formula, and one provider per lpkernels backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.compiled import compile_watched
from benchmarks.harness import strict_fp32
from benchmarks.techniques import EMULATED, Techniques
from benchmarks.work import Candidate, Provider, Unavailable, dtype_of
from lpkernels import ops

Function = Callable[..., Any]
PRECISIONS = ("fp32", "fp16", "bf16")
PLAIN = ("torch", "ref")  # backends written in PyTorch
COMPILE_MODE = "max-autotune-no-cudagraphs"  # the harness itself puts kernels into CUDA graphs


def torch_providers(function: Function, cast: tuple[int, ...], device: torch.device) -> list[Provider]:
    """Eager FP32, eager FP16 and BF16 (the yardsticks) and compiled FP16; ``cast`` indexes what is lowered."""

    def eager(precision: str) -> Callable[[], Candidate]:
        def candidate() -> Candidate:
            _not_emulated(precision, device)
            return Candidate(_cast(function, cast, dtype_of(precision)))

        return candidate

    def compiled() -> Candidate:
        if device.type != "cuda":
            raise Unavailable("compiled kernels are compared on a CUDA device")
        call, watch = compile_watched(_lowered(function), COMPILE_MODE)
        return Candidate(_cast(call, cast, torch.float16), watch.fell_back, watch.extras)

    return [
        Provider("baseline-fp32", Techniques().works_in(device), eager("fp32")),
        Provider("baseline-half", "fp16", eager("fp16"), yardstick=True),
        Provider("baseline-bf16", "bf16", eager("bf16"), yardstick=True),
        Provider(f"compile-{COMPILE_MODE}", "fp16", compiled),
    ]


def op_providers(
    name: str, cast: tuple[int, ...], device: torch.device, caller: Callable[[], Function] | None = None
) -> list[Provider]:
    """``lpkernels-<backend>-<precision>`` for every backend the op has; FP32 without TF32.

    ``caller`` makes what calls the op, one for each provider; None: the op itself.
    """
    op = ops.registry()[name]

    def build(backend: str, precision: str) -> Callable[[], Candidate]:
        def candidate() -> Candidate:
            if reason := op.backends[backend].why_not(device.type):
                raise Unavailable(reason)
            if backend in PLAIN:
                _not_emulated(precision, device)
            public = getattr(ops, name) if caller is None else caller()
            return Candidate(_cast(_with_backend(public, backend), cast, dtype_of(precision)))

        return candidate

    return [
        Provider(f"lpkernels-{backend}-{precision}", precision, build(backend, precision))
        for backend in op.backends
        for precision in PRECISIONS
    ]


class PackedOnce:
    """The op ``name`` with some of its inputs, weights in FP32, packed and lowered once, as ``pack`` says."""

    def __init__(self, name: str, places: tuple[int, ...]) -> None:
        self._name, self._places = name, places
        self._held: dict[tuple[int, ...], tuple[list[Tensor], list[Tensor]]] = {}  # with the weights, for their ids

    def pack(self, x: Tensor, *weights: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def __call__(self, *inputs: Any) -> Any:
        weights = [inputs[place] for place in self._places]
        key = tuple(map(id, weights))
        if key not in self._held:
            self._held[key] = (weights, [made.to(inputs[0].dtype) for made in self.pack(inputs[0], *weights)])
        arguments = list(inputs)
        for place, made in zip(self._places, self._held[key][1], strict=True):
            arguments[place] = made
        return getattr(ops, self._name)(*arguments)


class WinogradWeight(PackedOnce):
    """The op with its weight, the second input, as products that neighbouring rows share.

    It is so where the network asks for it (``asked``) and the op has a kernel for it, else only cast.
    """

    def __init__(self, name: str, asked: bool) -> None:
        super().__init__(name, (1,))
        self._asked = asked

    def pack(self, x: Tensor, *weights: Tensor) -> list[Tensor]:
        (weight,) = weights
        outputs, *taps, channels = weight.shape
        depth = taps[0] if len(taps) == 3 else 1
        taken = self._asked and ops.takes_winograd(self._name, x.device.type, x.dtype, channels, outputs, depth)
        return [ops.pack_winograd_weight(weight, ops.packs_together(self._name, outputs)) if taken else weight]


class WinogradSpade(PackedOnce):
    """An op of a convolution and the SPADE behind it, or of several stacked, with both weights in that form."""

    def pack(self, x: Tensor, *weights: Tensor) -> list[Tensor]:
        weight, spade_weight = weights
        outputs, *_, channels = weight.shape[-4:]
        hidden = spade_weight.shape[-1]
        if not ops.takes_winograd(self._name, x.device.type, x.dtype, channels, outputs, hidden=hidden):
            return list(weights)
        return [_packed_rows(weight, ops.packs_together(self._name, outputs)), _packed_rows(spade_weight, False)]


def _packed_rows(weight: Tensor, together: bool) -> Tensor:
    packed = ops.pack_winograd_weight(weight.reshape(-1, *weight.shape[-3:]), together)
    return packed.reshape(*weight.shape[:-3], *packed.shape[1:])


def _not_emulated(precision: str, device: torch.device) -> None:
    if device.type != "cuda" and precision != "fp32":
        raise Unavailable(EMULATED)


def _with_backend(function: Function, backend: str) -> Function:
    def call(*inputs: Tensor) -> Any:
        with ops.use_backend(backend), strict_fp32():
            return function(*inputs)

    return call


def _lowered(function: Function) -> Function:
    def call(*inputs: Tensor) -> Any:
        return function(*inputs)

    return call


class _cast:  # noqa: N801 - reads as a function where it is used
    """Calls ``function`` with some inputs lowered; casts once per input tensor, for producers hand over that dtype."""

    def __init__(self, function: Function, indices: tuple[int, ...], dtype: torch.dtype) -> None:
        self._function, self._indices, self._dtype = function, indices, dtype
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def _lower(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == self._dtype:
            return tensor
        kept = self._made.get(id(tensor))
        if kept is None or kept[0] is not tensor:
            kept = self._made[id(tensor)] = (tensor, tensor.to(self._dtype))
        return kept[1]

    def __call__(self, *inputs: Tensor) -> Any:
        return self._function(*(self._lower(t) if i in self._indices else t for i, t in enumerate(inputs)))
