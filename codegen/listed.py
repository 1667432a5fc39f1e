"""Runtime lists of columns and diagonals: tiles that are visited, and columns that are gathered.

Let c say that a key is a listed column and s that a pair lies on a listed diagonal, and write the
mask as f(c, s). If neither occurs negated, f only grows with them, and

    f(c, s)  =  f(0, 0)  or  s & f(0, 1)  or  c & f(1, s)

The first part is static: ranges of tiles, as ever. Of the second, the tiles inside the ranges of
f(0, 1) that a listed diagonal meets are visited. Visited tiles evaluate the whole mask, so what is
left of the third part lies in no visited tile: there listed columns are gathered, one by one, with
f(1, s) evaluated for each pair. No pair is met twice.

Queries of a tile and of the next one differ by a whole number of tiles, so the tiles that the
diagonals meet, counted back from the tile of the first query, are the same for all tiles of
queries: one list for each batch entry and head. See docs/lists.md.
"""

from __future__ import annotations

from functools import lru_cache

from maskwright.codegen.algebra import ceildiv
from maskwright.codegen.prove import Prover
from maskwright.codegen.schedule import Diagonals
from maskwright.codegen.schedule import Gather
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import derive
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.sources import diagonals_of
from maskwright.codegen.sources import grown
from maskwright.codegen.sources import members_of
from maskwright.codegen.sources import one_row
from maskwright.codegen.sources import ranges
from maskwright.codegen.sources import segments
from maskwright.codegen.sources import usable
from maskwright.codegen.tile import K
from maskwright.codegen.tile import TileShape
from maskwright.codegen.tiles import TileAlgebra
from maskwright.dsl import nodes as n

_NEVER, _ALWAYS = n.Const(value=False), n.Const(value=True)


@lru_cache(maxsize=512)
def schedule_of(mask: n.Node, tile: TileShape, *, tail: bool = True) -> Schedule:
    """What a kernel follows: runtime lists where the mask has that form, else ``derive``."""
    found = derive_listed(mask, tile, tail=tail) or derive_sources(mask, tile, tail=tail)
    return found or derive(mask, tile, tail=tail)


def derive_listed(mask: n.Node, tile: TileShape, *, tail: bool = True) -> Schedule | None:
    """The schedule along runtime lists; None if the mask does not have that form."""
    found = _lists(mask)
    if found is None or tile.transposed or not _fits(tile, *found):
        return None
    column, diagonals = found
    none: dict[n.Node, n.Node] = {} if column is None else {column: _NEVER}
    every: dict[n.Node, n.Node] = {} if diagonals is None else {diagonals.member: _ALWAYS}
    absent = none | dict.fromkeys(every, _NEVER)
    static = derive(n.substitute(mask, absent), tile, tail=tail)
    near = derive(n.substitute(mask, none | every), tile, tail=tail)
    if not usable(static) or not usable(near):
        return None
    algebra = TileAlgebra(Prover(tile))
    gaps = algebra.complement(ranges(static.visit), ceildiv(tile.end, tile.block_n))
    beside = algebra.intersect(ranges(near.visit), gaps) if diagonals else ()
    gather = None
    if column is not None:
        attended = n.substitute(mask, {column: _ALWAYS})
        reach = derive(n.substitute(attended, every), tile, tail=tail)
        if not usable(reach):
            return None
        columns = algebra.intersect(ranges(reach.visit), gaps)
        if columns:
            gather = Gather(column, segments(columns), segments(beside), fold(attended))
    crossed = segments(beside, "crossed")
    edge = algebra.intersect(ranges(near.partial), gaps) if beside else ()
    inner = algebra.intersect(ranges(near.full), gaps) if beside else ()
    filled = segments(inner, "filled")
    partial = (*static.partial, *crossed, *segments(edge, "filled"))
    return Schedule(
        tile,
        partial,
        (*static.full, *filled),
        (*static.visit, *crossed, *segments(beside, "filled")),
        closed=True,
        reasons=tuple(dict.fromkeys((*static.reasons, *near.reasons))),
        diagonals=diagonals if beside else None,
        gather=gather,
    )


# -- which lists ----------------------------------------------------------------------------------
def _lists(mask: n.Node) -> tuple[n.Member | None, Diagonals | None] | None:
    """(the list of columns, the list of diagonals): at most one of each, at least one in all."""
    members = members_of(mask)
    columns = [x for x in members if x.value is K]
    diagonals = [x for x in map(diagonals_of, members) if x is not None]
    if not members or len(columns) > 1 or len(diagonals) > 1:
        return None
    if len(columns) + len(diagonals) < len(members) or not all(one_row(x) for x in members):
        return None
    if grown(mask, members) is None:
        return None
    return (columns[0] if columns else None), (diagonals[0] if diagonals else None)


def _fits(tile: TileShape, column: n.Member | None, diagonals: Diagonals | None) -> bool:
    """Tiles of queries begin at few places, and columns are not whole tiles of keys."""
    unit = max(tile.block_n, diagonals.step if diagonals else 1)
    large, small = max(tile.block_m, unit), min(tile.block_m, unit)
    return large % small == 0 and (column is None or column.run < tile.block_n)


def fold(node: n.Node) -> n.Node:
    """A condition without the constants in it."""
    match node:
        case n.Not(a):
            inner = fold(a)
            return n.Const(value=not inner.value) if isinstance(inner, n.Const) else n.Not(inner)
        case n.Logic("&" | "|" as op, a, b):
            x, y = fold(a), fold(b)
            neutral = _ALWAYS if op == "&" else _NEVER
            if x is neutral or y is neutral:
                return y if x is neutral else x
            if isinstance(x, n.Const) or isinstance(y, n.Const):
                return _NEVER if op == "&" else _ALWAYS
            return n.Logic(op, x, y)
    return node
