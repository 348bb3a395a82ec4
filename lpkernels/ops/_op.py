"""What every op shares: its torch.library registration and the choice of a backend.

An op runs the first backend of its list that can run on the tensors' device. ``LPKERNELS_BACKEND`` (read on each call)
and ``use_backend`` replace the list: only what they name may run, in that order, and if none can, the error holds each
one's reason. Nothing falls back in silence: ``Op.choose`` returns what was passed over and why.
``LPKERNELS_NO_HOPPER=1`` hides the kernels that no GPU before Hopper runs, to see what others would.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from lpkernels import _lib, capture, trace
from lpkernels.errors import BackendError, InputError

NAMESPACE = "lpkernels"
BACKENDS = ("cuda", "triton", "torch", "cpu", "ref")
ENVIRONMENT = "LPKERNELS_BACKEND"
NO_HOPPER = "LPKERNELS_NO_HOPPER"
TRITON_INTERPRET = "TRITON_INTERPRET"
HOPPER_SPACING = 8  # elements: 16 bytes of halves, what TMA and vectors want

_requested: ContextVar[tuple[str, ...] | None] = ContextVar("lpkernels_backend", default=None)
_fragment = torch.library.Library(NAMESPACE, "FRAGMENT")
_ops: dict[str, Op] = {}


Signature = tuple[tuple[tuple[int, ...], torch.dtype], ...]  # shape and dtype of each tensor of a call


@dataclass(frozen=True)
class Backend:
    """One way to run an op.

    ``why_not`` answers None, or the reason why it cannot run on that device type; ``refuses`` the same for the shapes
    and dtypes of one call, where a kernel is made for some only. ``spacing`` is what its call's must be a multiple of.
    """

    name: str
    why_not: Callable[[str], str | None]
    run: Callable[..., Any]
    refuses: Callable[[Signature], str | None] = lambda signature: None
    kernel: Callable[..., Any] | None = None  # a Python function to register as an op of its own, ``<op>_<backend>``
    spacing: int = 1


@dataclass(frozen=True)
class Choice:
    """The backend an op will use on a device type (None: none can), and the reasons against those before it."""

    backend: str | None
    passed: dict[str, str]


class Op:
    """One op: its schema in the namespace ``lpkernels``, and its backends in order of preference."""

    def __init__(self, schema: str, fake: Callable[..., Any], backends: tuple[Backend, ...]) -> None:
        self.name = schema.split("(", 1)[0]
        self.schema = schema
        self.backends = {backend.name: backend for backend in backends}
        self._spaced = any(backend.spacing > 1 for backend in backends)
        _lib.status()
        if not hasattr(torch.ops.lpkernels, self.name):
            _fragment.define(schema)  # no op library did it: the name and its schema exist all the same
        self._complete(self.name, fake)
        for backend in backends:
            if backend.kernel is not None:
                own = f"{self.name}_{backend.name}"
                _fragment.define(schema.replace(self.name, own, 1))
                for key in ("CPU", "CUDA"):
                    _fragment.impl(own, backend.kernel, key)
                self._complete(own, fake)
        _ops[self.name] = self

    def choose(self, device_type: str, signature: Signature | None = None, spacing: int = 0) -> Choice:
        """The backend for tensors on ``device_type`` ("cpu", "cuda"), under the current request.

        Without the ``signature`` and the ``spacing`` of a call every backend is taken to suit it.
        """
        passed: dict[str, str] = {}
        for name in requested_backends() or tuple(self.backends):
            backend = self.backends.get(name)
            reason = backend.why_not(device_type) if backend else f"{self.name} has no such backend"
            if reason is None and backend and signature is not None:
                reason = backend.refuses(signature)
            if reason is None and backend and spacing % backend.spacing:
                reason = f"made for pixels that begin at multiples of {backend.spacing} elements, got {spacing}"
            if reason is None:
                return Choice(name, passed)
            passed[name] = reason
        return Choice(None, passed)

    def __call__(self, *args: Any) -> Any:
        """Run the chosen backend on checked arguments; refuses gradients whichever backend that is."""
        if torch.is_grad_enabled() and any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args):
            self._refuse_gradient()
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        signature = tuple((tuple(int(size) for size in tensor.shape), tensor.dtype) for tensor in tensors)
        apart = spacing(tensors) if self._spaced else 0
        backend = self.backends[_backend_name(self.name, tensors[0].device.type, signature, apart)]
        if capture.active():
            capture.save(self.name, args)
        with trace.range(self.name, "op", backend=backend.name, shape=tuple(args[0].shape)):
            return backend.run(*args)

    def _complete(self, name: str, fake: Callable[..., Any]) -> None:
        """What torch.compile and autograd ask of an op that has its schema."""
        qualified = f"{NAMESPACE}::{name}"
        torch.library.register_fake(qualified, fake)
        if "!" not in self.schema:  # PyTorch takes no gradient formula for an op that writes into an argument
            torch.library.register_autograd(qualified, _no_backward, setup_context=self._refuse_gradient)

    def _refuse_gradient(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(
            f"{self.name} has no gradient, but an input requires one: call it under torch.no_grad() or on detached "
            f"tensors, or use lpkernels.ref.{self.name}, which is differentiable"
        )


def native(
    op_name: str,
    device_type: str,
    *,
    hopper: bool = False,
    clusters: bool = False,
    spacing: int = 1,
    refuses: Callable[[Signature], str | None] = lambda signature: None,
) -> Backend:
    """The op library's kernel for ``device_type`` ("cuda", "cpu") as a backend.

    ``hopper``: made for sm_90a alone; ``clusters``: for GPUs with thread-block clusters and 227 KB of shared memory.
    ``spacing``: that of ``Backend``; Hopper's kernels have their own.
    """

    def why_not(actual: str) -> str | None:
        if actual != device_type:
            return f"needs {device_type} tensors"
        if error := _lib.status().error:
            return error
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op_name}", device_type.upper()):
            return f"the op library was built without {device_type.upper()}"
        return why_not_hopper() if hopper else _why_not_clusters() if clusters else None

    def run(*args: Any) -> Any:
        return getattr(torch.ops.lpkernels, op_name)(*args)

    return Backend(device_type, why_not, run, refuses, spacing=HOPPER_SPACING if hopper else spacing)


def triton_kernel(
    op_name: str,
    load: Callable[[], Callable[..., Any]],
    *,
    refuses: Callable[[Signature], str | None] = lambda signature: None,
) -> Backend:
    """A Triton kernel as a backend, and as the op ``<op_name>_triton``, opaque to torch.compile.

    ``load`` imports the launching function at the first call, so that Triton is loaded by those alone who use it.
    On CPU tensors it runs where Triton's interpreter is on (``TRITON_INTERPRET=1``): a check of logic, not a speed.
    """

    def kernel(*args: Any) -> Any:
        return load()(*args)

    def run(*args: Any) -> Any:
        return getattr(torch.ops.lpkernels, f"{op_name}_triton")(*args)

    return Backend("triton", _why_not_triton, run, refuses, kernel)


def reference(function: Callable[..., Any]) -> Backend:
    """The plain PyTorch reference as the last backend: it runs everywhere."""
    return Backend("ref", lambda device_type: None, function)


def spacing(tensors: Sequence[torch.Tensor]) -> int:
    """The elements that begin every pixel of the half-precision ``tensors`` at a multiple of them; 0: any number.

    While a graph is traced tensors have no offset to ask for: what begins off such a multiple the kernel then refuses.
    """
    steps: list[int] = []
    placed = not torch.compiler.is_compiling()
    for tensor in tensors:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            outer = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
            steps += [int(stride) for size, stride in outer if size > 1]
            steps += [int(tensor.storage_offset())] if placed else []
    return math.gcd(*steps)


def registry() -> dict[str, Op]:
    """Every op by name."""
    return dict(_ops)


def requested_backends() -> tuple[str, ...] | None:
    """The backends asked for by ``use_backend`` or the environment, in order; None if nothing was asked for."""
    if (names := _requested.get()) is not None:
        return names
    if text := os.environ.get(ENVIRONMENT):
        return _parse(text, ENVIRONMENT)
    return None


@contextlib.contextmanager
def use_backend(*names: str) -> Iterator[None]:
    """Inside the block ops may use only the backends ``names`` (of ``BACKENDS``), in that order.

    Holds for the current thread or task. Raises InputError for an unknown name.
    """
    token = _requested.set(_parse(",".join(names), "use_backend"))
    try:
        yield
    finally:
        _requested.reset(token)


def _parse(text: str, origin: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in BACKENDS]
    if unknown or not names:
        raise InputError(f"{origin}: expected backends out of {', '.join(BACKENDS)}, got {text!r}")
    return names


def _why_not_triton(device_type: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if os.environ.get(TRITON_INTERPRET) == "1":
        return None if device_type == "cpu" else f"{TRITON_INTERPRET}=1: the interpreter takes cpu tensors"
    if device_type != "cuda":
        return "needs cuda tensors"
    capability = torch.cuda.get_device_capability()
    return None if capability >= (7, 5) else "needs compute capability 7.5, this is {}.{}".format(*capability)


def why_not_hopper() -> str | None:
    """Why the current GPU cannot run kernels made for Hopper alone."""
    if os.environ.get(NO_HOPPER) == "1":
        return f"{NO_HOPPER}=1"
    capability = torch.cuda.get_device_capability()
    if capability != (9, 0):
        return "needs a Hopper GPU (compute capability 9.0), this is {}.{}".format(*capability)
    if "9.0a" not in _lib.build_info().get("architectures", ""):
        return 'the op library was built without sm_90a: rebuild with TORCH_CUDA_ARCH_LIST="9.0a"'
    return None


def _why_not_clusters() -> str | None:
    if os.environ.get(NO_HOPPER) == "1":
        return f"{NO_HOPPER}=1"
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    if capability.split(".")[0] not in ("9", "10"):
        return f"needs compute capability 9 or 10 (clusters, 227 KB of shared memory), this is {capability}"
    if capability not in _lib.build_info().get("architectures", ""):
        return f"the op library was built without sm_{capability.replace('.', '')}: rebuild with TORCH_CUDA_ARCH_LIST"
    return None


def _backend_name(op_name: str, device_type: str, signature: Signature, spacing: int) -> str:
    choice = _ops[op_name].choose(device_type, signature, spacing)
    if choice.backend is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.passed.items())
        raise BackendError(f"{op_name} cannot run on {device_type} tensors: {reasons}")
    return choice.backend


# A constant to torch.compile: the choice is made when a graph is traced. This is all that
# torch.compiler.assume_constant_result does, but that loads the compiler, which takes seconds.
vars(_backend_name)["_dynamo_marked_constant"] = True


def _no_backward(ctx: Any, *gradients: Any) -> NoReturn:
    raise AssertionError("setup_context refuses gradients before any backward")
