"""From a mask to the tiles of keys that a tile of queries must visit, as closed-form loop bounds.

Let VISIT be the tiles that hold an attended pair and TOUCH those that hold a masked pair. Both
come from the same projection, of the mask and of its negation. Then

    partial = VISIT and TOUCH        (the predicate is evaluated)
    full    = not TOUCH              (no predicate)

Errors of the projection only enlarge VISIT and TOUCH, so a tile is never wrongly skipped and never
wrongly full. See docs/system.md for a worked example.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from typing import TypeAlias

from maskwright.codegen.algebra import const
from maskwright.codegen.normal import Clause
from maskwright.codegen.normal import TooManyClausesError
from maskwright.codegen.normal import kind_is
from maskwright.codegen.prove import Prover
from maskwright.codegen.ranges import Lists
from maskwright.codegen.ranges import RangeBuilder
from maskwright.codegen.strides import Period
from maskwright.codegen.strides import combine
from maskwright.codegen.tile import Q_FIRST
from maskwright.codegen.tile import Q
from maskwright.codegen.tile import TileShape
from maskwright.codegen.tile import exchanged
from maskwright.codegen.tiles import Range
from maskwright.codegen.tiles import TileAlgebra
from maskwright.dsl import nodes as n

MAX_RANGES = 10

# Tiles that runtime lists cross, or that they fill; or all those of a list that is prepared.
Met: TypeAlias = Literal["crossed", "filled", "entries"]


@dataclass(frozen=True)
class Segment:
    """Tiles ``lo <= j < hi``; with a period only those with ``(j - origin) mod period < width``.

    With ``met`` only those that listed diagonals (or listed tiles, see ``Source``) cross or fill.
    """

    lo: n.Node
    hi: n.Node
    period: Period | None = None
    met: Met | None = None


@dataclass(frozen=True)
class Diagonals:
    """A runtime list of diagonals: pairs with ``q - k + shift`` among the entries of a row.

    With a step, ``q // step * step`` takes the place of q: queries between share their diagonals.
    """

    member: n.Member
    shift: int
    step: int = 1


@dataclass(frozen=True)
class Gather:
    """Listed columns that lie in no visited tile: their keys are loaded by index.

    Attributes:
        member: ``k.isin(row)``.
        segments: tiles whose listed columns are gathered, unless the tile is visited for a
            listed diagonal.
        near: tiles among which those that a listed diagonal meets are visited.
        keep: which pairs of a listed column are attended.
    """

    member: n.Member
    segments: tuple[Segment, ...]
    near: tuple[Segment, ...]
    keep: n.Node


@dataclass(frozen=True)
class Source:
    """A runtime list that decides which tiles are visited (see ``sources``).

    Attributes:
        member: its condition.
        kind: it lists blocks of keys, single keys, or diagonals.
        block: keys of a block.
        index: which of its rows a query has, an expression of q; None if all have the same.
        rows: queries that have the same row; 0 if all have.
        shift, step: of a list of diagonals: ``q // step * step - k + shift`` is listed.
    """

    member: n.Member
    kind: Literal["blocks", "columns", "diagonals"]
    block: int = 1
    index: n.Node | None = None
    rows: int = 0
    shift: int = 0
    step: int = 1


@dataclass(frozen=True)
class Schedule:
    """What a query tile visits. Segments of ``partial`` and ``full`` are pairwise disjoint.

    Attributes:
        tile: the tile shape the bounds hold for.
        partial: tiles whose predicate is evaluated.
        full: tiles without predicate.
        visit: all tiles that may hold an attended pair.
        closed: False if ``visit`` is only a superset: the kernel then takes a list of tiles.
        reasons: why it is not closed, or not exact.
        diagonals, gather: runtime lists that the kernel walks along (see ``listed``).
        sources: runtime lists from which tiles are listed on the device (see ``sources``).
        ways: a pair outside the static tiles needs all the sources of one of these.
    """

    tile: TileShape
    partial: tuple[Segment, ...]
    full: tuple[Segment, ...]
    visit: tuple[Segment, ...]
    closed: bool
    reasons: tuple[str, ...]
    diagonals: Diagonals | None = None
    gather: Gather | None = None
    sources: tuple[Source, ...] = ()
    ways: tuple[tuple[int, ...], ...] = ()

    @property
    def listed(self) -> bool:
        """Runtime lists are prepared on the device."""
        return self.diagonals is not None or self.gather is not None or bool(self.sources)

    @property
    def step(self) -> int:
        """Queries that share their diagonals."""
        return 1 if self.diagonals is None else self.diagonals.step

    @property
    def unit(self) -> int:
        """Tiles of queries that begin a multiple of this apart meet listed diagonals alike."""
        return max(self.tile.block_n, self.step)

    @property
    def phases(self) -> int:
        """Places at which tiles of queries begin in a unit."""
        return max(1, self.unit // self.tile.block_m)

    @property
    def walked(self) -> tuple[Segment, ...]:
        """Segments whose bounds the kernel (or that which lists its tiles) computes."""
        if not self.closed:
            return self.visit
        gather = self.gather
        columns = () if gather is None else gather.segments + gather.near
        return self.partial + self.full + columns


@lru_cache(maxsize=512)
def derive(mask: n.Node, tile: TileShape, *, tail: bool = True) -> Schedule:
    """The schedule of ``mask`` for one tile shape.

    Args:
        mask: mask node.
        tile: tile shape; if transposed, the schedule walks over tiles of queries.
        tail: count a last tile that reaches beyond the keys as partial, as a kernel must.
    """
    mask = exchanged(mask) if tile.transposed else mask
    algebra = TileAlgebra(Prover(tile))
    builder = RangeBuilder(algebra, tile, tail)
    try:
        lists = _branches(mask, builder)
    except TooManyClausesError:
        return _everything(tile, algebra, "the mask has too many alternatives for closed bounds")
    if len(lists.visit) + len(lists.touch) > MAX_RANGES:
        return _everything(tile, algebra, "the mask has too many separate key ranges")
    return _assemble(lists, algebra, builder, tile)


def derive_row(mask: n.Node) -> Schedule:
    """The keys of a single query at position ``q_first``: a schedule of 1 x 1 tiles.

    Its ``visit`` is exact if ``closed``; that is how attended pairs are counted.
    """
    row = n.substitute(mask, {Q: Q_FIRST})
    return derive(row, TileShape(1, 1, inside=False), tail=False)


def _branches(mask: n.Node, builder: RangeBuilder) -> Lists:
    """One list of ranges, or with ``by_head`` one a kind, chosen by scalars in the kernel."""
    chosen = next((x for x in n.walk(mask) if isinstance(x, n.ByHead)), None)
    if chosen is None:
        return builder.lists(mask)
    result: Lists | None = None
    for i, member in enumerate(chosen.masks):
        lists = _branches(n.substitute(mask, {chosen: member}), builder)
        result = lists if result is None else builder.merge(kind_is(chosen.kinds, i), lists, result)
    assert result is not None
    if isinstance(chosen.kinds, n.Table):
        none = n.Read(chosen.kinds, (n.Sym("h"),))
        outside = n.Logic(
            "|",
            n.Compare("<", none, const(0)),
            n.Compare(">=", none, const(len(chosen.masks))),
        )
        nothing = _branches(n.substitute(mask, {chosen: n.Const(value=False)}), builder)
        result = builder.merge(outside, nothing, result)
    return result


def _assemble(
    lists: Lists, algebra: TileAlgebra, builder: RangeBuilder, tile: TileShape
) -> Schedule:
    end = builder.end
    visit = algebra.union(list(lists.visit))
    touch = algebra.union(list(lists.touch))
    visit_strided = algebra.intersect(
        algebra.union(list(lists.visit_strided)), algebra.complement(visit, end)
    )
    touch_strided = algebra.intersect(
        algebra.union(list(lists.touch_strided)), algebra.complement(touch, end)
    )
    periods = combine(lists.visit_stride, lists.touch_stride, tile.block_n)
    everything_touched = algebra.union([*lists.touch, *lists.touch_strided])
    partial = [
        *_segments(algebra.intersect(visit, touch)),
        *_segments(algebra.intersect(visit, touch_strided), periods.touched),
        *_segments(algebra.intersect(visit_strided, touch), periods.visited),
        *(
            segment
            for period in periods.mixed
            for segment in _segments(algebra.intersect(visit_strided, touch_strided), period)
        ),
    ]
    full = [
        *_segments(algebra.complement(everything_touched, end)),
        *_segments(touch_strided, periods.untouched),
    ]
    visited = (*_segments(visit), *_segments(visit_strided, periods.visited))
    return Schedule(
        tile,
        tuple(partial),
        tuple(full),
        visited,
        not visited or not lists.visit_reasons,  # of nothing there is no list
        tuple(dict.fromkeys(lists.visit_reasons or lists.touch_reasons)),
    )


def _segments(ranges: tuple[Range, ...], period: Period | None = None) -> tuple[Segment, ...]:
    return tuple(Segment(r.lo, r.hi, period) for r in ranges)


def _everything(tile: TileShape, algebra: TileAlgebra, reason: str) -> Schedule:
    end = RangeBuilder(algebra, tile, tail=True).end
    whole = (Segment(const(0), end),)
    return Schedule(tile, whole, (), whole, closed=False, reasons=(reason,))


__all__ = ["Clause", "Diagonals", "Gather", "Schedule", "Segment", "Source", "derive", "derive_row"]
