"""Strided keys as periodic sets of tiles."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.codegen.algebra import Linear
from maskwright.codegen.algebra import const
from maskwright.codegen.algebra import content
from maskwright.codegen.algebra import floordiv
from maskwright.codegen.algebra import linear
from maskwright.codegen.algebra import simplify
from maskwright.codegen.algebra import sub
from maskwright.codegen.algebra import to_node
from maskwright.codegen.project import Stride
from maskwright.dsl import nodes as n


@dataclass(frozen=True)
class Period:
    """Tiles ``j`` with ``(j - origin) mod period < width``; 0 <= origin < period."""

    origin: n.Node
    period: int
    width: n.Node

    def shifted(self, by: n.Node, width: n.Node) -> Period:
        """The same period, ``by`` tiles later, of another width."""
        moved = simplify_mod(simplify(n.Arith("+", self.origin, by)), self.period)
        return Period(moved, self.period, simplify(width))


@dataclass(frozen=True)
class Periods:
    """What a pair of strides means for tiles.

    Attributes:
        visited: tiles that hold a key of the mask's stride.
        touched: tiles that hold a key of the negation's stride.
        untouched: tiles that hold none of those.
        mixed: tiles that are visited and touched (only where blocks and tiles do not align).
    """

    visited: Period | None = None
    touched: Period | None = None
    untouched: Period | None = None
    mixed: tuple[Period, ...] = ()


def fits(stride: Stride, block_n: int) -> bool:
    """The period is a whole number of tiles: then the tiles it meets are periodic too."""
    return stride.period % block_n == 0


def complementary(a: Stride, b: Stride) -> bool:
    """``b`` holds exactly the keys that ``a`` leaves out."""
    moved = linear(b.shift) - linear(a.shift) + a.width
    return (
        a.period == b.period
        and a.width + b.width == a.period
        and moved.is_const
        and moved.const % a.period == 0
    )


def combine(visit: Stride | None, touch: Stride | None, block_n: int) -> Periods:
    """Tile periods of the mask's stride and of its negation's."""
    if visit is None and touch is None:
        return Periods()
    if touch is None:
        assert visit is not None
        return Periods(visited=_met(visit, block_n))
    touched = _met(touch, block_n)
    untouched = touched.shifted(touched.width, sub(const(touched.period), touched.width))
    if visit is None:
        return Periods(touched=touched, untouched=untouched)
    visited = _met(visit, block_n)
    before = _ceil(_offset(visit, block_n), block_n)
    inside = floordiv(simplify(n.Arith("+", _offset(visit, block_n), const(visit.width))), block_n)
    after = simplify(_larger(before, inside))
    mixed = (
        visited.shifted(const(0), before),
        visited.shifted(after, sub(visited.width, after)),
    )
    kept = tuple(p for p in mixed if p.width is not const(0))
    return Periods(visited, touched, untouched, kept)


def _met(stride: Stride, block_n: int) -> Period:
    """Tiles that hold a key of the stride."""
    offset = _offset(stride, block_n)
    width = _ceil(simplify(n.Arith("+", offset, const(stride.width))), block_n)
    room = _largest_offset(stride, block_n)
    if room + stride.width <= block_n:
        width = const(1)
    if isinstance(width, n.Const) and int(width.value) > stride.period // block_n:
        width = const(stride.period // block_n)
    elif not isinstance(width, n.Const):
        width = n.Arith("min", width, const(stride.period // block_n))
    return Period(_first_tile(stride, block_n), stride.period // block_n, width)


def _base(stride: Stride) -> Linear:
    return linear(stride.shift).scale(-1)


def _first_tile(stride: Stride, block_n: int) -> n.Node:
    """Tile of the stride's first key at or after 0."""
    tile = floordiv(to_node(_base(stride)), block_n)
    return simplify_mod(tile, stride.period // block_n)


def simplify_mod(node: n.Node, period: int) -> n.Node:
    """``node mod period``; remainders inside it need not be taken twice."""
    form = linear(node)
    for term, c in form.terms:
        match term:
            case n.Arith("%", x, n.Const(int(size))) if size % period == 0:
                form = form - Linear(((term, c),), 0) + linear(x).scale(c)
    if form.is_const:
        return const(form.const % period)
    return n.Arith("%", to_node(Linear(form.terms, form.const % period)), const(period))


def _offset(stride: Stride, block_n: int) -> n.Node:
    """Position of a block's first key inside its tile."""
    base = _base(stride)
    if content(base) % block_n == 0 or base.is_const:
        return const(base.const % block_n)
    return n.Arith("%", to_node(base), const(block_n))


def _largest_offset(stride: Stride, block_n: int) -> int:
    base = _base(stride)
    step = content(base)
    if base.is_const or step % block_n == 0:
        return base.const % block_n
    if block_n % step:
        return block_n - 1
    return block_n - step + base.const % step


def _ceil(node: n.Node, size: int) -> n.Node:
    return floordiv(simplify(n.Arith("+", node, const(size - 1))), size)


def _larger(a: n.Node, b: n.Node) -> n.Node:
    if isinstance(a, n.Const) and isinstance(b, n.Const):
        return const(max(int(a.value), int(b.value)))
    return n.Arith("max", a, b)
