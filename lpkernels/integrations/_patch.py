"""Putting a replacement into a module and taking it out again.

The module stays the object it is, with its parameters, hooks, state dict and class: an instance attribute ``forward``
goes before the class's. A ``torch.compile``d module has such an attribute already; it is put aside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lpkernels.errors import LpkernelsError
from lpkernels.integrations._replacements import Replacement

_SHADOWED = ("forward", "_compiled_call_impl")  # the second is what ``module.compile()`` leaves
_MARK = "_lpkernels_patch"


def unwrapped(module: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``, however often it was called."""
    while isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        module = inner
    return module


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of ``module`` go through ``torch.compile``, or would without its patch."""
    patch = patch_of(module)
    own = vars(module) if patch is None else patch.shadowed
    return unwrapped(module) is not module or own.get("_compiled_call_impl") is not None


@dataclass(eq=False)
class Patch:
    """A replacement and the module it belongs to.

    Attributes:
        shadowed: the module's own values of what is patched, while it is.
    """

    module: nn.Module
    replacement: Replacement
    shadowed: dict[str, Any] = field(default_factory=dict)
    loads: RemovableHandle | None = None

    def install(self) -> None:
        """Let the replacement answer."""
        own = vars(self.module)
        self.shadowed = {name: own[name] for name in _SHADOWED if name in own}
        self.loads = unwrapped(self.module).register_load_state_dict_post_hook(self._outdate)
        own["_compiled_call_impl"] = None
        own["forward"] = _forward(self)

    def remove(self) -> None:
        """Let the module answer itself again."""
        own = vars(self.module)
        for name in _SHADOWED:
            own.pop(name, None)
        own.update(self.shadowed)
        if self.loads is not None:
            self.loads.remove()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise LpkernelsError("an accelerated network cannot be copied or pickled: call lpkernels.restore first")

    def _outdate(self, module: nn.Module, keys: Any) -> None:
        self.replacement.outdated = True


def patch_of(module: nn.Module) -> Patch | None:
    """The patch that is installed in ``module``."""
    return getattr(vars(module).get("forward"), _MARK, None)


def exchange(old: Iterable[Patch], new: Iterable[Patch]) -> None:
    """Remove and install, all or nothing."""
    undo = []
    try:
        for patch in old:
            patch.remove()
            undo.append(patch.install)
        for patch in new:
            patch.install()
            undo.append(patch.remove)
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def _forward(patch: Patch) -> Any:
    """A function, as dynamo wants it: one that it leaves alone."""
    replacement = patch.replacement

    @torch.compiler.disable
    def forward(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    setattr(forward, _MARK, patch)
    return forward
