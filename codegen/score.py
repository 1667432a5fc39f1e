"""Score expressions in a kernel: the score, and for gradients its derivatives."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.codegen.emit import TILE
from maskwright.codegen.emit import Emitter
from maskwright.codegen.emit import safe_name
from maskwright.dsl import nodes as n
from maskwright.dsl.derivative import derivative


@dataclass(frozen=True)
class TableGradient:
    """Gradient of one read of a float table: ``d score / d read``, and where to add it.

    Attributes:
        over: what the place depends on besides scalars: ``""``, ``q``, ``k`` or ``qk``. The
            contributions of the others are summed before they are added.
        place, inside: offset in the table, and the condition that it lies inside.
    """

    table: str
    text: str
    over: str
    place: str
    inside: str


@dataclass(frozen=True)
class ScorePlan:
    """Text of a score expression inside a loop; all empty if there is none."""

    lines: tuple[str, ...] = ()
    text: str = ""
    slope: str = ""
    table_gradients: tuple[TableGradient, ...] = ()


def plan_score(emitter: Emitter, score: n.Node | None, *, gradients: bool) -> ScorePlan:
    """Emit a score expression after a mask; with ``gradients`` its derivatives, too."""
    if score is None:
        return ScorePlan()
    del emitter.lines[TILE][:]
    # Variables of the predicate's tile level do not exist in the full loop.
    for node in [x for x in emitter.names if emitter.level_of(x) == TILE]:
        del emitter.names[node]
    reads = _float_reads(score) if gradients else ()
    slope = derivative(score, n.Sym(n.SCORE)) if gradients else n.Const(1.0)
    emitter.count_uses([score, slope, *(derivative(score, x) for x in reads)])
    text = emitter.emit(score, TILE)
    found = tuple(_table_gradient(emitter, score, x) for x in reads)
    shown = "" if slope is n.Const(1.0) else emitter.emit(slope, TILE)
    return ScorePlan(tuple(emitter.lines[TILE]), text, shown, found)


def _float_reads(score: n.Node) -> tuple[n.Read, ...]:
    found = (x for x in n.walk(score) if isinstance(x, n.Read))
    return tuple(x for x in found if x.table.dtype == "float")


def _table_gradient(emitter: Emitter, score: n.Node, read: n.Read) -> TableGradient:
    text = emitter.emit(derivative(score, read), TILE)
    over = "".join(sorted({"q", "k"} & n.symbols(read), reverse=True))
    place, inside = emitter.address(read.table, read.index, TILE)
    name = safe_name(read.table.name)
    return TableGradient(name, text, over, place.removeprefix(f"{name} + "), inside)
