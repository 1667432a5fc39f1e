"""Linear integer forms over expression nodes; sympy does the algebra.

A ``Linear`` is ``sum(coefficient * term) + const``. A term is any node that the algebra cannot
look into: a symbol, a param, a table read, a floor division, a product of two of these, ...
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import gcd

import sympy

from maskwright.dsl import nodes as n
from maskwright.dsl.text import to_text


@dataclass(frozen=True)
class Linear:
    """``sum(c * t for t, c in terms) + const``; terms are sorted by their text."""

    terms: tuple[tuple[n.Node, int], ...]
    const: int

    def __add__(self, other: Linear | int) -> Linear:
        if isinstance(other, int):
            return Linear(self.terms, self.const + other)
        return _collect([*self.terms, *other.terms], self.const + other.const)

    def __sub__(self, other: Linear | int) -> Linear:
        return self + (-other if isinstance(other, int) else other.scale(-1))

    def scale(self, factor: int) -> Linear:
        """``factor`` times this form."""
        if factor == 0:
            return Linear((), 0)
        return Linear(tuple((t, c * factor) for t, c in self.terms), self.const * factor)

    def split(self, name: str) -> tuple[Linear, Linear]:
        """(terms that depend on symbol ``name``, the rest with the constant)."""
        mine = tuple(tc for tc in self.terms if name in n.symbols(tc[0]))
        rest = tuple(tc for tc in self.terms if name not in n.symbols(tc[0]))
        return Linear(mine, 0), Linear(rest, self.const)

    @property
    def is_const(self) -> bool:
        """No terms."""
        return not self.terms


_LONG = 60  # nodes: beyond this a term is ordered by its digest, not by its text


@cache
def _order(node: n.Node) -> tuple[bool, str]:
    """Sort key of terms: the same in every process.

    Bounds share parts heavily, so the text of a deep one can be exponentially long.
    """
    return (False, to_text(node)) if _size(node) <= _LONG else (True, n.structure(node))


@cache
def _size(node: n.Node) -> int:
    """Nodes of the expression as a tree, up to a limit."""
    return min(1 + sum(map(_size, n.children(node))), _LONG + 1)


def _collect(pairs: Iterable[tuple[n.Node, int]], const: int) -> Linear:
    total: dict[n.Node, int] = {}
    for term, c in pairs:
        total[term] = total.get(term, 0) + c
    kept = [(t, c) for t, c in total.items() if c]
    return Linear(tuple(sorted(kept, key=lambda tc: _order(tc[0]))), const)


_symbols: dict[n.Node, sympy.Symbol] = {}
_nodes: dict[sympy.Symbol, n.Node] = {}


def _symbol(node: n.Node) -> sympy.Symbol:
    if node not in _symbols:
        symbol = sympy.Symbol(f"t{len(_symbols)}", integer=True)
        _symbols[node] = symbol
        _nodes[symbol] = node
    return _symbols[node]


@cache
def _to_sympy(node: n.Node) -> sympy.Expr:
    match node:
        case n.Const(int(value)):
            return sympy.Integer(value)
        case n.Arith("+", a, b):
            return _to_sympy(a) + _to_sympy(b)
        case n.Arith("-", a, b):
            return _to_sympy(a) - _to_sympy(b)
        case n.Arith("*", a, b):
            return _to_sympy(a) * _to_sympy(b)
        case n.Arith("//", a, n.Const(int(divisor))) if divisor > 0:
            return _floordiv(linear(a), divisor)
    return _symbol(node)


def _floordiv(form: Linear, divisor: int) -> sympy.Expr:
    """Terms that ``divisor`` divides move out: (64 * x + y) // 64 is x + y // 64."""
    whole = [(t, c // divisor) for t, c in form.terms if c % divisor == 0]
    inner = Linear(tuple((t, c) for t, c in form.terms if c % divisor), form.const % divisor)
    outer = sympy.Add(*(c * _to_sympy(t) for t, c in whole), form.const // divisor)
    if inner.is_const or divisor == 1:
        return outer
    return outer + _symbol(n.Arith("//", to_node(inner), n.Const(divisor)))


@cache
def linear(node: n.Node) -> Linear:
    """The linear form of an integer node."""
    match node:  # sums need no computer algebra
        case n.Const(int(value)):
            return Linear((), value)
        case n.Arith("+", a, b):
            return linear(a) + linear(b)
        case n.Arith("-", a, b):
            return linear(a) - linear(b)
        case n.Arith("*", a, n.Const(int(factor))) | n.Arith("*", n.Const(int(factor)), a):
            return linear(a).scale(factor)
        case n.Arith("*" | "//"):
            return _expand(node)
    return Linear(((node, 1),), 0)


def _expand(node: n.Node) -> Linear:
    """Products and floor divisions, by sympy."""
    expanded = sympy.expand(_to_sympy(node))
    terms: list[tuple[n.Node, int]] = []
    const = 0
    for monomial, coefficient in expanded.as_coefficients_dict().items():
        if monomial == 1:
            const = int(coefficient)
        else:
            terms.append((_monomial(monomial), int(coefficient)))
    return _collect(terms, const)


def _monomial(expr: sympy.Expr) -> n.Node:
    """A product of symbols (with powers) back to a node."""
    factors: list[n.Node] = []
    for base, power in sorted(expr.as_powers_dict().items(), key=lambda bp: _order(_nodes[bp[0]])):
        factors += [_nodes[base]] * int(power)
    node = factors[0]
    for factor in factors[1:]:
        node = n.Arith("*", node, factor)
    return node


def to_node(form: Linear) -> n.Node:
    """A linear form back to a node, positive terms first."""
    node: n.Node | None = None
    for term, c in sorted(form.terms, key=lambda tc: tc[1] < 0):
        part = term if abs(c) == 1 else n.Arith("*", term, n.Const(abs(c)))
        if node is None:
            node = part if c > 0 else n.Arith("-", n.Const(0), part)
        else:
            node = n.Arith("+" if c > 0 else "-", node, part)
    if node is None:
        return n.Const(form.const)
    if form.const == 0:
        return node
    return n.Arith("+" if form.const > 0 else "-", node, n.Const(abs(form.const)))


@cache
def simplify(node: n.Node) -> n.Node:
    """Canonical node of an integer expression."""
    return to_node(linear(node))


def divide_floor(form: Linear, divisor: int) -> Linear:
    """Linear form of ``form // divisor`` for a positive constant divisor."""
    return form if divisor == 1 else linear(n.Arith("//", to_node(form), n.Const(divisor)))


def content(form: Linear) -> int:
    """Greatest common divisor of the coefficients of the terms (1 if there are none)."""
    return gcd(*(c for _, c in form.terms)) or 1


# -- small builders used all over the compiler ---------------------------------------------------
def const(value: int) -> n.Node:
    """Integer constant."""
    return n.Const(value)


def add(a: n.Node, b: n.Node | int) -> n.Node:
    """Simplified sum."""
    return simplify(n.Arith("+", a, n.Const(b) if isinstance(b, int) else b))


def sub(a: n.Node, b: n.Node | int) -> n.Node:
    """Simplified difference."""
    return simplify(n.Arith("-", a, n.Const(b) if isinstance(b, int) else b))


def floordiv(a: n.Node, divisor: int) -> n.Node:
    """Simplified floor division by a positive constant."""
    return simplify(n.Arith("//", a, n.Const(divisor)))


def ceildiv(a: n.Node, divisor: int) -> n.Node:
    """Simplified ceiling division by a positive constant."""
    return floordiv(add(a, divisor - 1), divisor)
