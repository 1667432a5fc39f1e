"""A small prover for ``a <= b`` over tile symbols. It may fail to prove; it is never wrong.

Floor division by a constant is opened as ``x // B = (x - r) / B`` with a fresh ``0 <= r < B``;
what remains is minimised over the known range of each term. Sums are integers, so a rational
lower bound above -1 proves >= 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from fractions import Fraction
from functools import cache

from maskwright.codegen.algebra import Linear
from maskwright.codegen.algebra import linear
from maskwright.codegen.algebra import to_node
from maskwright.codegen.tile import TileShape
from maskwright.dsl import nodes as n

Range = tuple[int | None, int | None]
Form = dict[n.Node, Fraction]
_ONE = n.Const(1)
_DEPTH = 6


@dataclass
class Prover:
    """Facts about one tile shape.

    Args:
        tile: positions of the tile that stays: q_last - q_first lies in [0, block_m - 1]. With
            ``inside`` all positions lie in [0, kv_len).
    """

    tile: TileShape
    memo: dict[tuple[n.Node, n.Node], bool] = field(default_factory=dict)

    def le(self, a: n.Node, b: n.Node) -> bool:
        """True only if ``a <= b`` always holds."""
        if a is b:
            return True
        if (a, b) not in self.memo:
            self.memo[a, b] = self._nonnegative(linear(n.Arith("-", b, a)), _DEPTH)
        return self.memo[a, b]

    def lt(self, a: n.Node, b: n.Node) -> bool:
        """True only if ``a < b`` always holds."""
        return self.le(n.Arith("+", a, _ONE), b)

    def nonnegative(self, form: Linear) -> bool:
        """True only if the form is always >= 0."""
        return self._nonnegative(form, _DEPTH)

    def _nonnegative(self, form: Linear, depth: int) -> bool:
        for term, c in form.terms:
            match term:
                case n.Arith("min" | "max" as op, a, b):
                    # max >= each of its arguments: one of them suffices where it helps us.
                    one_is_enough = (op == "max") == (c > 0)
                    return self._cases(form, term, c, (a, b), one_is_enough, depth)
                case n.Where(_, a, b):
                    return self._cases(form, term, c, (a, b), False, depth)
                case n.Arith("//", a, n.Const(int(size))) if size > 0 and _hides_choice(a):
                    return self._open_division(form, term, a, size, depth)
        return self._minimum(form) > -1

    def _cases(
        self,
        form: Linear,
        term: n.Node,
        c: int,
        options: tuple[n.Node, n.Node],
        any_: bool,
        depth: int,
    ) -> bool:
        if depth == 0:
            return False
        rest = form - Linear(((term, c),), 0)
        tried = (self._nonnegative(rest + linear(o).scale(c), depth - 1) for o in options)
        return any(tried) if any_ else all(tried)

    def _open_division(self, form: Linear, term: n.Node, a: n.Node, size: int, depth: int) -> bool:
        """Distribute ``max(x, y) // B`` to ``max(x // B, y // B)``, then go on."""
        if depth == 0:
            return False
        for inner, c in linear(a).terms:
            match inner:
                case n.Arith("min" | "max", x, y) if c > 0:
                    pass
                case n.Where(_, x, y):
                    pass
                case _:
                    continue
            parts = [n.Arith("//", n.substitute(a, {inner: z}), n.Const(size)) for z in (x, y)]
            whole = n.rebuild(inner, (*n.children(inner)[:-2], *parts))
            opened = linear(n.substitute(to_node(form), {term: whole}))
            return self._nonnegative(opened, depth - 1)
        return self._minimum(form) > -1

    def _minimum(self, form: Linear) -> Fraction:
        """Least value over the box of all terms; -inf is reported as a very small number."""
        total: Form = {}
        constant = Fraction(form.const)
        for term, c in form.terms:
            constant += self._open(term, Fraction(c), total)
        for term, factor in total.items():
            low, high = self._range(term)
            bound = low if factor > 0 else high
            if factor and bound is None:
                return Fraction(-(10**12))
            constant += factor * (bound or 0)
        return constant

    def _open(self, term: n.Node, c: Fraction, total: Form) -> Fraction:
        """Add ``c * term`` to ``total`` with divisions and q_last opened; returns the constant part."""
        match term:
            case n.Sym("q_last"):
                return self._spread(("q_first", "rows_after_first"), c, total)
            case n.Sym("kv_len") if self.tile.stays_inside:
                parts = ("q_first", "rows_after_first", "keys_after_last")
                return self._spread(parts, c, total) + c
            case n.Arith("//", a, n.Const(int(size))) if size > 0:
                constant = Fraction(0)
                inner = linear(a)
                for t, ct in inner.terms:
                    constant += self._open(t, c * ct / size, total)
                residue = n.Arith("%", a, n.Const(size))
                total[residue] = total.get(residue, Fraction(0)) - c / size
                return constant + c * inner.const / size
            case n.Search():
                bound = self._search_bound(term, above=c < 0)
                if bound is not None:
                    constant = c * bound.const
                    for t, ct in bound.terms:
                        constant += self._open(t, c * ct, total)
                    return constant
        total[term] = total.get(term, Fraction(0)) + c
        return Fraction(0)

    def _search_bound(self, node: n.Search, *, above: bool) -> Linear | None:
        """A bound on a search for the value at a position: that position, or the next."""
        if not self.tile.inside:
            return None
        value = linear(node.value)
        for term, c in value.terms:
            match term:
                case n.Read(node.table, (*prefix, last)) if c == 1 and len(value.terms) == 1:
                    if tuple(prefix) != node.prefix:
                        continue
                    if above and value.const <= 0:
                        return linear(last)
                    if not above and value.const >= 1:
                        return linear(last) + 1
        return linear(n.Sym("kv_len")) if above else None

    def _spread(self, parts: tuple[str, ...], c: Fraction, total: Form) -> Fraction:
        for part in parts:
            total[n.Sym(part)] = total.get(n.Sym(part), Fraction(0)) + c
        return Fraction(0)

    def _range(self, term: n.Node) -> Range:
        match term:
            case n.Sym("rows_after_first"):
                return 0, self.tile.block_m - 1
            case n.Sym("kv_len" | "q_len"):
                return 1, None
            case n.Sym("q_first") if self.tile.stays_inside:
                return 0, None
            case n.Sym("q" | "q_offset") if self.tile.inside:
                return 0, None
            case n.Sym("b" | "h" | "kv_head" | "k" | "keys_after_last"):
                return 0, None
            case n.Param(_, low, high):
                return low, high
            case n.Arith("%", _, n.Const(int(size))) if size > 0:
                return 0, size - 1
            case n.Search() | n.Extent():
                return 0, None
        return None, None


@cache
def _hides_choice(node: n.Node) -> bool:
    match node:
        case n.Where() | n.Arith("min" | "max"):
            return True
    return any(_hides_choice(x) for x in n.children(node))
