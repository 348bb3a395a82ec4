"""Where the networks lie in a program's objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lpkernels.errors import InputError
from lpkernels.integrations._networks import NETWORKS, Network, identify, why_left
from lpkernels.integrations._patch import unwrapped
from lpkernels.models.portrait_model import PortraitModel

# Attributes that lead from what a user has in hand to what holds the networks.
HOLDERS = ("live_portrait_wrapper", "live_portrait_wrapper_animal", "pipeline", "wrapper")
_BY_NAME = {network.name: network for network in NETWORKS}


@dataclass(frozen=True)
class Found:
    """A module, the network it is, or why it stays as it is."""

    where: str
    module: nn.Module | None
    kind: str
    network: Network | None
    why_left: str = ""


def find(target: Any) -> list[Found]:
    """The networks in ``target``: itself, its attributes, and those of the holders among them; each module once.

    Raises:
        InputError: there is none; the message says what was looked at.
    """
    name = type(target).__name__
    if isinstance(target, type):
        raise InputError(
            f"target must be an object, got the class {target.__name__}; accelerate() without a target is a context "
            "manager that accelerates what is constructed in it"
        )
    if isinstance(target, str):
        raise InputError(f"target must be an object, got {target!r}; a precision is given as precision={target!r}")
    if isinstance(target, PortraitModel):
        raise InputError(f"target must be an object of another program, got lpkernels' {name}: use lpkernels.optimize")
    if isinstance(target, nn.Module) and (network := identify(unwrapped(target))):
        return [_found(name, target, network)]
    found: list[Found] = []
    seen: set[int] = set()
    rows = (row for path, holder in holders(target) for row in _rows(holder, path))
    for row in rows:
        if row.module is None or id(row.module) not in seen:
            seen.add(id(row.module))
            found.append(row)
    if not any(row.network for row in found):
        members = [f"{key} ({type(value).__name__})" for key, value in _members(target).items()]
        raise InputError(
            f"no network of LivePortrait found in {name}: looked for {', '.join(_BY_NAME)} in its attributes "
            f"({', '.join(members[:12]) or 'none'}) and below {', '.join(HOLDERS)}; are the models loaded yet?"
        )
    return found


def holders(target: Any) -> Iterator[tuple[str, Any]]:
    """A program's objects that hold networks, ``target`` first, each once with the path of attributes to it."""
    waiting, seen = [("", target)], {id(target)}
    while waiting:
        path, holder = waiting.pop(0)
        yield path, holder
        for name, value in _members(holder).items():
            if name in HOLDERS and id(value) not in seen and not isinstance(value, nn.Module | Mapping):
                seen.add(id(value))
                waiting.append((f"{path}{name}.", value))


def _rows(holder: Any, path: str) -> Iterator[Found]:
    for name, value in _members(holder).items():
        where = path + name
        if isinstance(value, nn.Module):
            # Under a network's name stands that network, if in a version nobody knows.
            network = identify(unwrapped(value)) or _BY_NAME.get(name)
            if network is not None:
                yield _found(where, value, network)
            elif isinstance(value, nn.ModuleDict):
                yield from _known_left(where, dict(value.items()))
        elif name in _BY_NAME:
            kind = type(value).__name__
            yield Found(where, None, kind, _BY_NAME[name], "no torch module")
        elif isinstance(value, Mapping):
            yield from _known_left(where, value)


def _found(where: str, module: nn.Module, network: Network) -> Found:
    return Found(where, module, type(unwrapped(module)).__name__, network)


def _known_left(where: str, modules: Mapping[Any, Any]) -> Iterator[Found]:
    reasons = {why_left(module) for module in modules.values() if isinstance(module, nn.Module)}
    for reason in reasons - {None}:
        yield Found(where, None, type(modules).__name__, None, str(reason))


def _members(holder: Any) -> dict[str, Any]:
    members = dict(getattr(holder, "__dict__", {}))
    if isinstance(holder, nn.Module):
        members.update(holder.named_children())
    return members
