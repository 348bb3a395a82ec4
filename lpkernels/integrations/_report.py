"""What was replaced in a program, what was left, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One network of a target, or a function that goes with them.

    Attributes:
        where: the path of attributes that leads to it, or its class where it is the target itself.
        kind: its class.
        network: what it was recognised as, and its switch; None if that has no name of its own.
        replaced: whether a fused network answers in its place now, or a function of lpkernels'.
        note: how, or why not.
    """

    where: str
    kind: str
    network: str | None
    replaced: bool
    note: str


@dataclass(frozen=True)
class Report:
    """The answer of ``accelerate`` and ``restore``; ``print`` shows it as a table.

    Attributes:
        target: its class.
        parts: in the order in which they were found.
    """

    target: str
    parts: tuple[Part, ...]

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of the parts that are replaced now."""
        return tuple(part.network for part in self.parts if part.replaced and part.network is not None)

    @property
    def left(self) -> dict[str, str]:
        """Where the parts lie that run as before, with the reasons."""
        return {part.where: part.note for part in self.parts if not part.replaced}

    def __str__(self) -> str:
        known = sum(part.network is not None for part in self.parts)
        lines = [f"lpkernels: {len(self.replaced)} of {known} parts of {self.target} replaced"]
        wide = [max(len(part.where) for part in self.parts), max(len(part.kind) for part in self.parts)]
        for part in self.parts:
            verdict = "replaced" if part.replaced else "left"
            lines.append(f"  {part.where:{wide[0]}}  {part.kind:{wide[1]}}  {verdict:8}  {part.note}".rstrip())
        return "\n".join(lines)
