"""Tiles from runtime lists: blocks of keys, single keys, diagonals, in any combination that grows.

Let every ``isin`` of a mask be one of

    (k // B).isin(row)      blocks of keys, for all queries, for blocks of queries, or for each
    k.isin(row)             columns
    (q - k).isin(row)       diagonals; also of q // S * S for q, where S queries share them

and let none occur negated. With no list the mask is f(0), with lists of everything f(1). The tiles of
f(0) are ranges, as ever. Of the others in the ranges of f(1) a small kernel lists those that hold a
listed pair: it reads the lists as bits, never pair by pair. The same holds with the roles of
queries and keys exchanged, so the backward follows the same lists. See docs/lists.md.
"""

from __future__ import annotations

from functools import lru_cache

from maskwright.codegen.algebra import ceildiv
from maskwright.codegen.algebra import linear
from maskwright.codegen.algebra import to_node
from maskwright.codegen.normal import AtLeast
from maskwright.codegen.normal import Literal
from maskwright.codegen.normal import Opaque
from maskwright.codegen.normal import Residue
from maskwright.codegen.normal import TooManyClausesError
from maskwright.codegen.normal import clauses
from maskwright.codegen.prove import Prover
from maskwright.codegen.schedule import Diagonals
from maskwright.codegen.schedule import Met
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.schedule import Source
from maskwright.codegen.schedule import derive
from maskwright.codegen.tile import K
from maskwright.codegen.tile import Q
from maskwright.codegen.tile import TileShape
from maskwright.codegen.tiles import Range
from maskwright.codegen.tiles import Ranges
from maskwright.codegen.tiles import TileAlgebra
from maskwright.dsl import nodes as n

_NEVER, _ALWAYS = n.Const(value=False), n.Const(value=True)
_LENGTHS = {"q_len", "kv_len"}
MAX_SOURCES = 4
# Of an entry (atomics it takes), and of queries with the same diagonals (phases of their tiles).
_LONGEST_RUN, _WIDEST_STEP = 4096, 256


def derive_sources(mask: n.Node, tile: TileShape, *, tail: bool = True) -> Schedule | None:
    """The schedule with listed tiles; None if the mask does not have that form."""
    found = sources_of(mask)
    if found is None:
        return None
    sources, ways = found
    absent = derive(n.substitute(mask, _all(sources, _NEVER)), tile, tail=tail)
    present = derive(n.substitute(mask, _all(sources, _ALWAYS)), tile, tail=tail)
    if not usable(absent) or not usable(present):
        return None
    algebra = TileAlgebra(Prover(tile))
    gaps = algebra.complement(ranges(absent.visit), ceildiv(tile.end, tile.block_n))
    beside = algebra.intersect(ranges(present.visit), gaps)
    if not beside:
        return None
    crossed = segments(beside, "crossed")
    edge = segments(algebra.intersect(ranges(present.partial), gaps), "filled")
    inner = segments(algebra.intersect(ranges(present.full), gaps), "filled")
    return Schedule(
        tile,
        (*absent.partial, *crossed, *edge),
        (*absent.full, *inner),
        (*absent.visit, *crossed, *segments(beside, "filled")),
        closed=True,
        reasons=tuple(dict.fromkeys((*absent.reasons, *present.reasons))),
        sources=sources,
        ways=ways,
    )


def _all(sources: tuple[Source, ...], value: n.Node) -> dict[n.Node, n.Node]:
    return {x.member: value for x in sources}


def usable(schedule: Schedule) -> bool:
    """Closed, and plain ranges only: a stride beside a list takes the general path."""
    found = (*schedule.partial, *schedule.full, *schedule.visit)
    return schedule.closed and all(x.period is None for x in found)


def ranges(found: tuple[Segment, ...]) -> Ranges:
    """Segments without a period as ranges."""
    return tuple(Range(x.lo, x.hi) for x in found)


def segments(found: Ranges, met: Met | None = None) -> tuple[Segment, ...]:
    """Ranges as segments."""
    return tuple(Segment(x.lo, x.hi, met=met) for x in found)


# -- which lists ----------------------------------------------------------------------------------
@lru_cache(maxsize=512)
def sources_of(mask: n.Node) -> tuple[tuple[Source, ...], tuple[tuple[int, ...], ...]] | None:
    """(the lists, the sets of them that allow a pair); None if there is none, or one does not fit."""
    members = members_of(mask)
    found = tuple(x for x in map(_source, members) if x is not None)
    if not members or len(found) < len(members) or len(found) > MAX_SOURCES:
        return None
    parts = grown(mask, members)
    if parts is None:
        return None
    sets = {frozenset(map(members.index, x)) for x in parts if x}
    least = [x for x in sets if not any(y < x for y in sets)]
    return found, tuple(sorted(tuple(sorted(x)) for x in least))


def members_of(mask: n.Node) -> list[n.Member]:
    """Memberships that depend on the pair."""
    return [x for x in n.walk(mask) if isinstance(x, n.Member) and moves(x)]


def moves(node: n.Node) -> bool:
    """Depends on the pair."""
    return bool(n.symbols(node) & {"q", "k"})


def grown(mask: n.Node, members: list[n.Member]) -> list[list[n.Member]] | None:
    """The memberships in each clause; None if one is negated, or out of the algebra's sight."""
    try:
        found = clauses(mask)
    except TooManyClausesError:
        return None
    if not all(_plain(literal, members) for clause in found for literal in clause):
        return None
    return [[x.node for x in clause if _is_member(x, members)] for clause in found]  # type: ignore[union-attr, misc]


def _is_member(literal: Literal, members: list[n.Member]) -> bool:
    return isinstance(literal, Opaque) and literal.node in members


def _plain(literal: Literal, members: list[n.Member]) -> bool:
    match literal:
        case Opaque(node, True) if node in members:
            return True
        case Opaque(node, _):
            parts = n.walk(node)
        case AtLeast(form) | Residue(form, _, _):
            parts = n.walk(to_node(form))
    return not any(x in members for x in parts)


def one_row(member: n.Member) -> bool:
    """All pairs of a head search the same row."""
    return not any(map(moves, member.row.index))


def _source(member: n.Member) -> Source | None:
    if member.run > _LONGEST_RUN:
        return None
    match member.value:
        case n.Arith("//", x, n.Const(int(size))) if x is K and size > 1:
            return _blocks(member, size)
    if member.value is K:
        return Source(member, "columns") if one_row(member) else None
    found = diagonals_of(member)
    if found is not None and one_row(member):
        return Source(member, "diagonals", shift=found.shift, step=found.step)
    return None


def diagonals_of(member: n.Member) -> Diagonals | None:
    """A list of diagonals; None if it is of something else, or entries stand for too many."""
    keys, rest = linear(member.value).split("k")
    if keys.terms != ((K, -1),) or member.run > _LONGEST_RUN:
        return None
    match rest.terms:
        case ((n.Sym("q"), 1),):
            return Diagonals(member, rest.const)
        case ((n.Arith("//", n.Sym("q"), n.Const(int(step))), factor),) if factor == step:
            power = step & (step - 1) == 0  # places of tiles within a step are then few
            return Diagonals(member, rest.const, step) if power and step <= _WIDEST_STEP else None
    return None


def _blocks(member: n.Member, size: int) -> Source | None:
    moving = [x for x in member.row.index if moves(x)]
    if not moving:
        return Source(member, "blocks", size)
    if len(moving) > 1 or "k" in n.symbols(moving[0]):
        return None
    rows = _rows(moving[0])
    return Source(member, "blocks", size, moving[0], rows) if rows else None


def _rows(index: n.Node) -> int:
    """Queries in a row that have the same index; 0 if that is not so simple."""
    with_q, rest = linear(index).split("q")
    if len(with_q.terms) != 1 or with_q.terms[0][1] != 1 or not _known(to_node(rest)):
        return 0
    match with_q.terms[0][0]:
        case n.Sym("q"):
            return 1
        case n.Arith("//", x, n.Const(int(size))) if size > 0:
            inner, offset = linear(x).split("q")
            return size if inner == linear(Q) and _known(to_node(offset)) else 0
    return 0


def _known(node: n.Node) -> bool:
    """The host knows its value, and writes it as the kernel does."""
    plain = all(isinstance(x, (n.Const, n.Sym, n.Arith)) for x in n.walk(node))
    return plain and n.symbols(node) <= _LENGTHS
