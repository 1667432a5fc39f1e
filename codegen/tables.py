"""Sorted tables: where the schedule may rely on the promise that they do not decrease."""

from __future__ import annotations

from collections.abc import Iterator

from maskwright.codegen.algebra import sub
from maskwright.codegen.algebra import to_node
from maskwright.codegen.normal import AtLeast
from maskwright.codegen.normal import Clause
from maskwright.codegen.normal import Literal
from maskwright.codegen.normal import Opaque
from maskwright.codegen.normal import Residue
from maskwright.codegen.project import KV_LEN
from maskwright.codegen.project import Q_FIRST
from maskwright.codegen.project import Q_LAST
from maskwright.dsl import nodes as n


def _sorted_reads(literal: Literal) -> Iterator[n.Read]:
    match literal:
        case AtLeast(form) | Residue(form, _, _):
            node = to_node(form)
        case Opaque(node, _):
            pass
    for x in n.walk(node):
        if isinstance(x, n.Read) and x.table.sorted and n.symbols(x.index[-1]) & {"q", "k"}:
            yield x


def without_sorted(clause: Clause) -> Clause:
    """The literals that read no sorted table at a position."""
    return tuple(x for x in clause if not any(_sorted_reads(x)))


def tables_inside(clauses: list[Clause]) -> n.Node | None:
    """Condition that all reads of sorted tables lie inside them; None if there are no such reads.

    A read outside yields -1 and would break the order.
    """
    checks: dict[n.Node, None] = {}
    for read in (r for clause in clauses for literal in clause for r in _sorted_reads(literal)):
        extent = n.Extent(read.table, read.table.ndim - 1)
        for corner in _corners(read.index[-1]):
            if not (isinstance(corner, n.Const) and int(corner.value) >= 0):
                checks[n.Compare(">=", corner, n.Const(0))] = None
            checks[n.Compare("<", corner, extent)] = None
    found: n.Node | None = None
    for check in checks:
        found = check if found is None else n.Logic("&", found, check)
    return found


def _corners(index: n.Node) -> list[n.Node]:
    """The index at the ends of the tile's queries and of the keys (indices are monotone)."""
    ends: list[dict[n.Node, n.Node]] = [
        {n.Sym("q"): Q_FIRST, n.Sym("k"): n.Const(0)},
        {n.Sym("q"): Q_LAST, n.Sym("k"): sub(KV_LEN, 1)},
    ]
    return [n.substitute(index, end) for end in ends]
