"""Sorted, disjoint lists of tile ranges with symbolic ends, and their algebra.

Ends are expressions of the tile, so the order of two ranges is often unknown until run time.
Everything here works without knowing it: the r-th smallest start pairs with the r-th smallest
end. Where the prover knows the order, the min and max disappear.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.codegen.algebra import const
from maskwright.codegen.algebra import simplify
from maskwright.codegen.prove import Prover
from maskwright.dsl import nodes as n


@dataclass(frozen=True)
class Range:
    """Tiles ``lo <= j < hi``. In a list, ``lo <= hi`` holds and ranges ascend."""

    lo: n.Node
    hi: n.Node


Ranges = tuple[Range, ...]


@dataclass(frozen=True)
class TileAlgebra:
    """Union, complement and intersection of tile ranges, simplified by what can be proved."""

    prover: Prover

    def smaller(self, a: n.Node, b: n.Node) -> n.Node:
        """min(a, b)."""
        if self.prover.le(a, b):
            return a
        if self.prover.le(b, a):
            return b
        return n.Arith("min", a, b)

    def larger(self, a: n.Node, b: n.Node) -> n.Node:
        """max(a, b)."""
        if self.prover.le(a, b):
            return b
        if self.prover.le(b, a):
            return a
        return n.Arith("max", a, b)

    def choose(self, cond: n.Node, a: n.Node, b: n.Node) -> n.Node:
        """``a`` where ``cond``, else ``b``."""
        return a if a is b else n.Where(cond, a, b)

    def sort(self, values: list[n.Node]) -> list[n.Node]:
        """Ascending order by a network of min and max."""
        done: list[n.Node] = []
        for value in values:
            carry = value
            for i, other in enumerate(done):
                done[i], carry = self.smaller(other, carry), self.larger(other, carry)
            done.append(carry)
        return done

    def union(self, ranges: list[Range]) -> Ranges:
        """Disjoint ascending ranges that cover the same tiles."""
        starts = self.sort([r.lo for r in ranges])
        ends = self.sort([r.hi for r in ranges])
        result: list[Range] = []
        for lo, hi in zip(starts, ends, strict=True):
            if result and self.prover.le(lo, result[-1].hi):
                # Overlapping or adjacent for sure: one range.
                result[-1] = Range(result[-1].lo, hi)
            elif result:
                result.append(Range(self.larger(lo, result[-1].hi), hi))
            else:
                result.append(Range(lo, hi))
        return self.prune(result)

    def complement(self, ranges: Ranges, end: n.Node) -> Ranges:
        """The gaps between ascending disjoint ranges, in [0, end)."""
        edges = [const(0), *(edge for r in ranges for edge in (r.lo, r.hi)), end]
        return self.prune([Range(edges[i], edges[i + 1]) for i in range(0, len(edges), 2)])

    def intersect(self, a: Ranges, b: Ranges) -> Ranges:
        """Tiles in both: no tile is covered more than twice, so twice-covered runs pair up."""
        if not a or not b:
            return ()
        starts = self.sort([r.lo for r in (*a, *b)])
        ends = self.sort([r.hi for r in (*a, *b)])
        pairs = zip(starts[1:], ends[:-1], strict=True)
        return self.prune([Range(lo, self.larger(lo, hi)) for lo, hi in pairs])

    def prune(self, ranges: list[Range]) -> Ranges:
        """Without the ranges that are empty for sure."""
        tidy = [Range(simplify(r.lo), simplify(r.hi)) for r in ranges]
        return tuple(r for r in tidy if not self.prover.le(r.hi, r.lo))
