"""Random masks: the kinds that users write, wild ones, and mixtures; with their runtime values.

Every node kind of the language appears. Numbers stay small enough for int32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import TypeAlias

import numpy as np

from maskwright.dsl import nodes as n
from maskwright.dsl import symbols as y
from maskwright.dsl.expr import Expr
from maskwright.dsl.expr import Operand
from maskwright.dsl.expr import arith
from maskwright.dsl.expr import compare
from maskwright.dsl.expr import logic
from maskwright.runtime.fuzz_values import Shape
from maskwright.runtime.fuzz_values import Values

BLOCKS = (2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 48, 64)
_COMPARE: tuple[n.CompareOp, ...] = ("<", "<=", ">", ">=", "==", "!=")
_LOGIC: tuple[n.LogicOp, ...] = ("&", "|", "^")
_MIXED: tuple[n.LogicOp, ...] = ("&", "&", "|", "|", "^")
_DIVISION: tuple[n.ArithOp, ...] = ("//", "%")
_SUM: tuple[n.ArithOp, ...] = ("+", "-")
_CHOICE: tuple[n.ArithOp, ...] = ("min", "max")
_MOSTLY_EQUAL: tuple[n.CompareOp, ...] = ("==", "==", "<", "<", ">=", "!=", "<=")
Forms: TypeAlias = tuple[Callable[[], Expr], ...]


def draw_mask(rng: np.random.Generator, shape: Shape) -> tuple[Expr, dict[str, Any]]:
    """A random mask, and a value for each of its params and tables."""
    maker = _Maker(rng, shape)
    mask = maker.mask()
    names = {p.name for p in n.params(mask.node)} | {t.name for t in n.tables(mask.node)}
    return mask, {name: value for name, value in maker.values.items() if name in names}


class _Maker(Values):
    """Draws one mask."""

    def mask(self) -> Expr:
        """Any mask."""
        roll = self.rng.random()
        if roll < 0.12:
            return self.condition(self.between(1, 4))
        if roll < 0.2:
            return self.by_head()
        if roll < 0.65:
            return self.typical()
        return self.mixture(self.between(1, 4))

    def typical(self) -> Expr:
        """Causal (mostly), and a union of what may be seen."""
        parts = [self.atom() for _ in range(self.between(1, 3))]
        seen = parts[0]
        for part in parts[1:]:
            seen = seen | part
        if self.chance(0.2):
            seen = seen & self.atom()
        first = (y.k <= y.q) if self.chance(0.85) else self.atom()
        return first & seen if self.chance(0.9) else first | seen

    def mixture(self, count: int) -> Expr:
        """``count`` parts under any boolean operators."""
        if count == 1:
            return self.atom()
        left = self.between(1, count - 1)
        found = logic(self.pick(_MIXED), self.mixture(left), self.mixture(count - left))
        return ~found if self.chance(0.15) else found

    def by_head(self) -> Expr:
        """A mask a head, by a list or by a table (with kinds outside the list sometimes)."""
        masks = [self.pick((self.atom, self.typical))() for _ in range(self.between(1, 3))]
        high = len(masks) - 1
        if self.chance(0.5):
            return y.by_head([self.between(0, high) for _ in range(self.shape.heads)], masks)
        kinds = self.rng.integers(-1, high + 2, max(1, self.shape.heads - self.pick((0, 0, 1))))
        return y.by_head(self.table("kind", kinds), masks)

    def atom(self) -> Expr:
        """One recognisable part."""
        makers: tuple[tuple[float, Callable[[], Expr]], ...] = (
            (5, self.window),
            (3, self.edge),
            (3, self.blocks),
            (3, self.stride),
            (4, self.documents),
            (2, self.member),
            (1, self.flag),
            (1, lambda: self.condition(2)),
            (0.3, lambda: y.as_expr(self.chance(0.5))),
            (0.5, self.by_head),
        )
        weights = np.array([weight for weight, _ in makers])
        chosen = int(self.rng.choice(len(makers), p=weights / weights.sum()))
        return makers[chosen][1]()

    def window(self) -> Expr:
        """A band of diagonals."""
        width = self.size(self.between(0, max(2, self.shape.kv_len)))
        far = y.q - y.k
        forms: Forms = (
            lambda: y.k <= y.q,
            lambda: y.q >= y.k,
            lambda: far < width,
            lambda: far <= width,
            lambda: y.k + width > y.q,
            lambda: -far <= width,
            lambda: far >= width,
            lambda: abs(far) <= width,
            lambda: y.absolute(far) > width,
            lambda: y.maximum(far, -far) < width,
            lambda: y.k >= y.maximum(y.q - width, 0),
            lambda: y.k < y.minimum(y.q + width, y.kv_len - 3),
        )
        return self.pick(forms)()

    def edge(self) -> Expr:
        """First or last keys or queries."""
        width = self.size(self.between(0, max(1, self.shape.kv_len // 2)))
        end = self.pick((y.kv_len, y.q_len, y.kv_len))
        where = self.pick((y.k, y.k, y.q))
        forms: Forms = (
            lambda: where < width,
            lambda: where >= width,
            lambda: where >= end - width,
            lambda: where < end - width,
            lambda: compare(self.pick(_COMPARE[4:]), where, width),
        )
        return self.pick(forms)()

    def blocks(self) -> Expr:
        """Positions compared by block."""
        size = self.pick(BLOCKS) if self.chance(0.85) else self.param(self.pick(BLOCKS))
        shift: Operand = self.between(-40, 40) if self.chance(0.25) else 0
        shift = y.h * self.between(-9, 9) if self.chance(0.2) else shift
        row, column = (y.q + shift) // size, (y.k + shift) // size
        apart = self.size(self.between(0, 4))
        forms: Forms = (
            lambda: column <= row,
            lambda: compare("==", column, row),
            lambda: row - column < apart,
            lambda: column < apart,
            lambda: compare("==", column, apart),
            lambda: abs(row - column) <= apart,
            lambda: y.k < (row + 1) * size,
        )
        return self.pick(forms)()

    def stride(self) -> Expr:
        """Every so many keys, queries, diagonals or blocks."""
        period = self.pick((2, 3, 4, 5, 8, 16, 24, 32, 48, 64, 96, 128))
        inner = self.pick((y.k, y.k, y.k, y.q - y.k, y.q, y.k - y.q))
        if self.chance(0.6):
            block = self.pick(BLOCKS)
            inner = inner // block
            period = self.pick((2, 3, 4, 5, 8))
        inner = inner + y.q_len if self.chance(0.05) else inner
        if self.chance(0.7):
            far = y.as_expr(self.between(-20, 20))
            inner = self.pick((far, y.h, y.h * 3 - 1, y.kv_head * 2, -y.b)) + inner
        inner = 2 * inner if self.chance(0.05) else inner
        modulus: Operand = period if self.chance(0.85) else self.param(self.pick((period, -period)))
        rest = inner % modulus
        limit = self.size(self.between(0, period))
        return compare(self.pick(_MOSTLY_EQUAL), rest, limit)

    def documents(self) -> Expr:
        """Ids of positions compared, in order or not."""
        ids = self.ids(ordered=self.chance(0.75))
        key = y.k if self.chance(0.85) else y.k + self.between(-5, 5)
        row = ids(y.q if self.chance(0.95) else y.q // 2)
        column = ids(key)
        number = self.size(self.between(-1, 4))
        forms: Forms = (
            lambda: compare("==", row, column),
            lambda: compare("==", row, column),
            lambda: compare(self.pick(_COMPARE), column, row),
            lambda: compare(self.pick(_COMPARE), column, number),
            lambda: compare(self.pick(_COMPARE), row, number),
            lambda: compare(self.pick(_MOSTLY_EQUAL), column, ids(y.kv_len - 1)),
            lambda: row - column < number,
            lambda: y.k < row,
            lambda: y.k >= row * self.between(1, 20),
            lambda: compare("==", row, column + self.between(-1, 1)),
        )
        return self.pick(forms)()

    def flag(self) -> Expr:
        """A bool table: a flag a position, or a matrix of pairs (a token tree)."""
        length = self.length()
        if self.chance(0.5):
            at = self.pick((y.k, y.k, y.q, y.k // 8))
            return self.table("flag", self.rng.random((*self._leading(1), length)) < 0.5)[y.b, at]
        count = self.between(1, max(1, length // 2))
        pairs = self.table("pair", self.rng.random((count, count)) < 0.4)
        start = self.pick((y.kv_len - count, 0, self.size(self.between(0, self.shape.kv_len))))
        return pairs[y.q - start, y.k - start]

    def member(self) -> Expr:
        """Membership in a runtime list: any order, duplicates, padding, empty lists, runs."""
        block = self.pick(BLOCKS)
        value, high = self.pick(
            (
                (y.k, self.shape.kv_len),
                (y.q - y.k, self.shape.kv_len),
                (y.k // block, self.shape.kv_len // block + 1),
                (y.q, self.shape.kv_len),
                (y.k - y.q, 9),
                (y.q // block * 3 - y.k // block, 9),
                (y.q // block * block - y.k, self.shape.kv_len),
            )
        )
        count = self.pick((0, 1, 3, 8, 20))
        rows = -(-self.shape.kv_len // block)
        prefix: tuple[Expr, ...]
        prefix = self.pick(((), (y.b,), (y.b, y.h), (y.b, y.h, y.q // block), (y.kv_head,)))
        sizes = (*self._leading(min(len(prefix), 2)), *((rows,) if len(prefix) == 3 else ()))
        entries = self.rng.integers(-2, high + 2, (*sizes, count))
        entries[self.rng.random(entries.shape) < 0.2] = -1
        row = self.table(f"list{len(prefix)}", entries)[prefix]
        return value.isin(row, run=self.pick((1, 1, 1, 3, block)))

    # -- anything -------------------------------------------------------------------------------
    def condition(self, depth: int) -> Expr:
        """Any boolean expression."""
        if depth == 0:
            return self.pick((self.window, self.edge))()
        roll = self.rng.random()
        if roll < 0.6:
            return compare(self.pick(_COMPARE), self.number(depth - 1), self.number(depth - 1))
        if roll < 0.75:
            return logic(self.pick(_LOGIC), self.condition(depth - 1), self.condition(depth - 1))
        if roll < 0.82:
            return ~self.condition(depth - 1)
        if roll < 0.9:
            parts = (self.condition(depth - 1) for _ in range(3))
            return y.where(*parts)
        row = self.table("list1", self.rng.integers(-3, 30, (self.shape.batch, 5)))[y.b]
        return self.number(depth - 1).isin(row, run=self.pick((1, 1, 4)))

    def number(self, depth: int) -> Expr:
        """Any integer expression."""
        leaves: tuple[Operand, ...] = (
            y.q,
            y.k,
            y.q,
            y.k,
            y.q - y.k,
            y.k - y.q,
            y.h,
            y.kv_head,
            y.b,
        )
        roll = self.rng.random()
        if depth == 0 or roll < 0.1:
            if self.chance(0.7):
                return y.as_expr(self.pick(leaves))
            return y.as_expr(self.pick((y.q_len, y.kv_len, self.size(self.between(-50, 99)))))
        a = self.number(depth - 1)
        if roll < 0.3:
            return arith(self.pick(_SUM), a, self.number(depth - 1))
        if roll < 0.55:
            return arith(self.pick(_DIVISION), a, self.divisor())
        if roll < 0.65:
            return a * self.size(self.between(-4, 4))
        if roll < 0.75:
            return arith(self.pick(_CHOICE), a, self.number(depth - 1))
        if roll < 0.82:
            return y.absolute(a) if self.chance(0.7) else -a
        if roll < 0.92:
            return y.where(self.condition(depth - 1), a, self.number(depth - 1))
        if roll < 0.96:
            return y.as_expr(self.pick((y.q, y.k))) * self.pick((y.q, y.k, y.h))
        return self.ids(ordered=self.chance(0.5))(a)

    def divisor(self) -> Operand:
        """Of ``//`` and ``%``: a constant or param of either sign; a param may be 0."""
        if self.chance(0.7):
            return int(self.pick(BLOCKS)) * self.pick((1, 1, 1, -1))
        return self.param(self.pick((*BLOCKS, -1, -3, -16, 0)))
