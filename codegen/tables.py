"""Sorted tables: where the schedule may rely on the promise that they do not decrease."""

from __future__ import annotations

from maskwright.codegen.algebra import sub
from maskwright.codegen.project import KV_LEN
from maskwright.codegen.project import Q_FIRST
from maskwright.codegen.project import Q_LAST
from maskwright.dsl import nodes as n


def tables_inside(mask: n.Node) -> n.Node | None:
    """Condition that all reads of sorted tables lie inside them; None if there are no such reads.

    A read outside yields -1 and would break the order, so the schedule then visits everything.
    """
    checks: dict[n.Node, None] = {}
    for node in n.walk(mask):
        match node:
            case n.Read(table, (*_, last)) if table.sorted and n.symbols(last) & {"q", "k"}:
                for corner in _corners(last):
                    checks[n.Compare(">=", corner, n.Const(0))] = None
                    extent = n.Extent(table, table.ndim - 1)
                    checks[n.Compare("<", corner, extent)] = None
    found: n.Node | None = None
    for check in checks:
        if _surely(check):
            continue
        found = check if found is None else n.Logic("&", found, check)
    return found


def _corners(index: n.Node) -> list[n.Node]:
    """The index at the ends of the tile's queries and of the keys (indices are monotone)."""
    ends: list[dict[n.Node, n.Node]] = [
        {n.Sym("q"): Q_FIRST, n.Sym("k"): n.Const(0)},
        {n.Sym("q"): Q_LAST, n.Sym("k"): sub(KV_LEN, 1)},
    ]
    return [n.substitute(index, end) for end in ends]


def _surely(check: n.Node) -> bool:
    match check:
        case n.Compare(">=", n.Const(int(value)), n.Const(0)):
            return value >= 0
        case n.Compare(">=", corner, n.Const(0)):
            return corner is sub(KV_LEN, 1)
    return False
