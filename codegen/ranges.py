"""Projected clauses as ranges of tiles: the lists that the schedule is assembled from."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace

from maskwright.codegen.algebra import ceildiv
from maskwright.codegen.algebra import const
from maskwright.codegen.algebra import floordiv
from maskwright.codegen.algebra import linear
from maskwright.codegen.normal import Clauses
from maskwright.codegen.normal import clauses
from maskwright.codegen.project import Keys
from maskwright.codegen.project import Stride
from maskwright.codegen.project import project
from maskwright.codegen.strides import complementary
from maskwright.codegen.strides import fits
from maskwright.codegen.tables import tables_inside
from maskwright.codegen.tables import without_sorted
from maskwright.codegen.tile import TileShape
from maskwright.codegen.tiles import Range
from maskwright.codegen.tiles import TileAlgebra
from maskwright.dsl import nodes as n


@dataclass(frozen=True)
class Lists:
    """Ranges of a mask (visit) and of its negation (touch), in any order, with lo <= hi each.

    The ``strided`` ones hold only where the tile meets the stride of that name.
    """

    visit: tuple[Range, ...] = ()
    visit_strided: tuple[Range, ...] = ()
    visit_stride: Stride | None = None
    touch: tuple[Range, ...] = ()
    touch_strided: tuple[Range, ...] = ()
    touch_stride: Stride | None = None
    visit_reasons: tuple[str, ...] = ()
    touch_reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class RangeBuilder:
    """Builds ``Lists`` for one tile shape."""

    algebra: TileAlgebra
    tile: TileShape
    tail: bool

    @property
    def end(self) -> n.Node:
        """Number of tiles to walk over."""
        return ceildiv(self.tile.end, self.tile.block_n)

    def lists(self, mask: n.Node) -> Lists:
        """Ranges of a mask and of its negation."""
        visited = self._projected(clauses(mask))
        touched = self._projected(clauses(mask, holds=False))
        plain, strided, stride, reasons = self._sides(visited, None)
        result = Lists(
            visit=plain, visit_strided=strided, visit_stride=stride, visit_reasons=reasons
        )
        plain, strided, other, reasons = self._sides(touched, stride, negation=True)
        result = replace(
            result, touch=plain, touch_strided=strided, touch_stride=other, touch_reasons=reasons
        )
        # Rows of queries beyond the end have no weight: such a tile needs no mask.
        masked = self.tail and not self.tile.transposed
        result = self._with_tail(result, touched) if masked else result
        return result if self.tile.inside else self._guard(result, mask)

    def _projected(self, found: Clauses) -> list[Keys]:
        return [project(c, self.tile, self.algebra.prover) for c in found]

    def _sides(
        self, found: list[Keys], partner: Stride | None, *, negation: bool = False
    ) -> tuple[tuple[Range, ...], tuple[Range, ...], Stride | None, tuple[str, ...]]:
        plain: list[Range] = []
        strided: list[Range] = []
        stride: Stride | None = None
        reasons: list[str] = []
        for keys in found:
            reasons += [f"no closed form for: {d}" for d in keys.dropped]
            usable, reason = self._usable(keys.stride, stride, partner)
            if reason:
                reasons.append(reason)
            stride = usable or stride
            whole = negation and self.tail and _unbounded(keys)
            (strided if usable else plain).append(self._range(keys, covers_tail=whole))
        return tuple(plain), tuple(strided), stride, tuple(reasons)

    def _usable(
        self, mine: Stride | None, chosen: Stride | None, partner: Stride | None
    ) -> tuple[Stride | None, str]:
        """The stride if tiles can follow it; else None and why (no reason: every tile meets it)."""
        size = self.tile.block_n
        if mine is None or (mine.period <= size and mine.period % size):
            return None, ""
        if not fits(mine, size):
            return None, f"a period of {mine.period} keys is no multiple of the {size}-key tile"
        if mine.period == size:
            return None, ""
        if chosen is not None and chosen != mine:
            return None, "strides of different phase or period in one mask"
        if partner is not None and not complementary(partner, mine):
            return None, "strides of different phase or period in one mask"
        return mine, ""

    def _range(self, keys: Keys, *, covers_tail: bool) -> Range:
        low: n.Node = const(0)
        for bound in keys.lows:
            low = self.algebra.larger(low, bound)
        if covers_tail:
            return Range(self._tile(self.algebra.smaller(low, self.tile.end)), self.end)
        high: n.Node = self.tile.end
        for bound in keys.highs:
            high = self.algebra.smaller(high, bound)
        first = self.algebra.smaller(self._tile(low), self.end)  # empty ranges lie inside, too
        last = ceildiv(high, self.tile.block_n)
        conds = list(keys.conds)
        if not self._aligned(low) and not self.algebra.prover.lt(low, high):
            conds.insert(0, n.Compare("<", low, high))
        last = self.algebra.larger(first, last)
        for cond in conds:
            last = self.algebra.choose(cond, last, first)
        return Range(first, last)

    def _tile(self, key: n.Node) -> n.Node:
        return floordiv(key, self.tile.block_n)

    def _aligned(self, low: n.Node) -> bool:
        form, size = linear(low), self.tile.block_n
        return form.const % size == 0 and all(c % size == 0 for _, c in form.terms)

    def _with_tail(self, lists: Lists, touched: list[Keys]) -> Lists:
        """A last tile beyond kv_len holds keys that nobody attends: it must count as touched."""
        if any(_unbounded(keys) for keys in touched):
            return lists
        tail = Range(self._tile(self.tile.end), self.end)
        return replace(lists, touch=(*lists.touch, tail))

    def _guard(self, lists: Lists, mask: n.Node) -> Lists:
        """Where a sorted table is read outside, its order cannot be used: go without it there."""
        reads = tables_inside(mask, self.tile.end)
        if reads is None:
            return lists
        # Clauses that were dropped for the order's sake are back.
        blind = self._projected([without_sorted(c) for c in clauses(mask, ordered=False)])
        plain, strided, _, _ = self._sides(blind, None)
        everything = (Range(const(0), self.end),)
        outside = Lists(visit=(*plain, *strided), touch=everything)
        return self.merge(reads, lists, outside)

    def merge(self, cond: n.Node, yes: Lists, no: Lists) -> Lists:
        """``yes`` where the scalar condition holds, else ``no``, range by range."""
        yes, no = self._compatible(yes, no.visit_stride, no.touch_stride), no
        no = self._compatible(no, yes.visit_stride, yes.touch_stride)
        return Lists(
            visit=self._slots(cond, yes.visit, no.visit),
            visit_strided=self._slots(cond, yes.visit_strided, no.visit_strided),
            visit_stride=yes.visit_stride or no.visit_stride,
            touch=self._slots(cond, yes.touch, no.touch),
            touch_strided=self._slots(cond, yes.touch_strided, no.touch_strided),
            touch_stride=yes.touch_stride or no.touch_stride,
            visit_reasons=(*yes.visit_reasons, *no.visit_reasons),
            touch_reasons=(*yes.touch_reasons, *no.touch_reasons),
        )

    def _compatible(self, lists: Lists, visit: Stride | None, touch: Stride | None) -> Lists:
        """One stride a kernel: a second, different one is given up (a superset remains)."""
        why = ("heads with different strides",)
        if lists.visit_stride and visit and lists.visit_stride != visit:
            lists = replace(
                lists,
                visit=(*lists.visit, *lists.visit_strided),
                visit_strided=(),
                visit_stride=None,
                visit_reasons=(*lists.visit_reasons, *why),
            )
        if lists.touch_stride and touch and lists.touch_stride != touch:
            lists = replace(
                lists,
                touch=(*lists.touch, *lists.touch_strided),
                touch_strided=(),
                touch_stride=None,
                touch_reasons=(*lists.touch_reasons, *why),
            )
        return lists

    def _slots(
        self, cond: n.Node, yes: tuple[Range, ...], no: tuple[Range, ...]
    ) -> tuple[Range, ...]:
        empty = Range(self.end, self.end)
        count = max(len(yes), len(no))
        pairs = zip(
            (*yes, *[empty] * (count - len(yes))), (*no, *[empty] * (count - len(no))), strict=True
        )
        return tuple(
            Range(self.algebra.choose(cond, y.lo, x.lo), self.algebra.choose(cond, y.hi, x.hi))
            for y, x in pairs
        )


def _unbounded(keys: Keys) -> bool:
    """Reaches every key from its lower bounds on, whatever the tile."""
    return not keys.highs and not keys.conds and keys.stride is None
