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
from maskwright.codegen.tile import KV_LEN
from maskwright.codegen.tile import Q_FIRST
from maskwright.codegen.tile import Q_LAST
from maskwright.dsl import nodes as n

_LAST_KEY = sub(KV_LEN, 1)


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


def tables_inside(mask: n.Node, end: n.Node = KV_LEN) -> n.Node | None:
    """Condition that all reads of sorted tables lie inside them; None if there are no such reads.

    A read outside yields -1 and would break the order; a search counts no entry beyond kv_len.

    Args:
        end: how many positions are walked over.
    """
    checks: dict[n.Node, None] = {}
    for read in _whole_reads(mask):
        extent = n.Extent(read.table, read.table.ndim - 1)
        for corner in _corners(read.index[-1], sub(end, 1)):
            if not (isinstance(corner, n.Const) and int(corner.value) >= 0):
                checks[n.Compare(">=", corner, n.Const(0))] = None
            checks[n.Compare("<", corner, extent)] = None
            if "k" in n.symbols(read.index[-1]) and corner is not _LAST_KEY:
                checks[n.Compare("<", corner, KV_LEN)] = None
    found: n.Node | None = None
    for check in checks:
        found = check if found is None else n.Logic("&", found, check)
    return found


def _whole_reads(node: n.Node) -> list[n.Read]:
    found = (x for x in n.walk(node) if isinstance(x, n.Read) and x.table.sorted)
    return [x for x in found if len(x.index) == x.table.ndim]


def _corners(index: n.Node, last: n.Node) -> list[n.Node]:
    """The index at the ends of the tile and of what it walks over (indices are monotone)."""
    ends = [(q, k) for q in (Q_FIRST, Q_LAST) for k in (n.Const(0), last)]
    found = [n.substitute(index, {n.Sym("q"): q, n.Sym("k"): k}) for q, k in ends]
    return list(dict.fromkeys(found))


def read_by_position(node: n.Node) -> bool:
    """Sorted tables are read at ``q``, ``k``, a block of them, or the last key only.

    Then a table as long as the keys is never read outside while positions lie in [0, kv_len).
    """
    return all(_is_position(read.index[-1]) for read in _whole_reads(node))


def _is_position(index: n.Node) -> bool:
    match index:
        case n.Sym("q" | "k") | n.Const(int(0)):
            return True
        case n.Arith("//", n.Sym("q" | "k"), n.Const(int(size))):
            return size > 0
    return index is _LAST_KEY
