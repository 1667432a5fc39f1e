"""Eliminate q: which keys can some query of the tile [q_first, q_last] attend, in closed form.

For one clause this is Fourier-Motzkin elimination. A literal ``G(q) + F(k) >= 0`` with monotone G
holds for some q of the tile iff it holds at one end of the tile; two literals that bound G from
below and from above combine into one about k alone. What cannot be projected is dropped, which
only makes the set larger; ``Keys.dropped`` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maskwright.codegen.algebra import Linear
from maskwright.codegen.algebra import divide_floor
from maskwright.codegen.algebra import linear
from maskwright.codegen.algebra import simplify
from maskwright.codegen.algebra import to_node
from maskwright.codegen.normal import AtLeast
from maskwright.codegen.normal import Clause
from maskwright.codegen.normal import Literal
from maskwright.codegen.normal import Opaque
from maskwright.codegen.normal import Residue
from maskwright.codegen.normal import literal_text
from maskwright.codegen.prove import Prover
from maskwright.codegen.tile import Q_FIRST
from maskwright.codegen.tile import Q_LAST
from maskwright.codegen.tile import K
from maskwright.codegen.tile import Q
from maskwright.codegen.tile import TileShape
from maskwright.dsl import nodes as n


@dataclass(frozen=True)
class Stride:
    """Keys with ``(k + shift) mod period < width``."""

    shift: n.Node
    period: int
    width: int


@dataclass(frozen=True)
class Keys:
    """Keys with every ``low <= k``, every ``k < high``, in the stride, if all conditions hold."""

    lows: tuple[n.Node, ...] = ()
    highs: tuple[n.Node, ...] = ()
    conds: tuple[n.Node, ...] = ()
    stride: Stride | None = None
    dropped: tuple[str, ...] = ()


def project(clause: Clause, tile: TileShape, prover: Prover) -> Keys:
    """Keys that some query of the tile attends under ``clause`` (a superset if ``dropped``)."""
    lows: list[n.Node] = []
    highs: list[n.Node] = []
    conds: list[n.Node] = []
    dropped: list[str] = []
    strides: list[Stride] = []
    literals = _tighten(clause)
    for literal in literals:
        match literal:
            case Opaque(node, holds):
                if _depends(node):
                    dropped.append(literal_text(literal))
                else:
                    conds.append(node if holds else n.Not(node))
            case Residue():
                found = _stride(literal, tile)
                match found:
                    case Stride():
                        strides.append(found)
                    case n.Node():
                        conds.append(found)
                    case str():
                        dropped.append(found)
            case AtLeast():
                if not _bound(_at_end(literal), lows, highs, conds, prover):
                    dropped.append(literal_text(literal))
    for form in _eliminate(literals):
        _bound(form, lows, highs, conds, prover)  # a mere tightening: may be left out
    if len(set(strides)) > 1:
        dropped.append("a second stride in one clause")
    stride = strides[0] if strides else None
    return Keys(_unique(lows), _unique(highs), _unique(conds), stride, tuple(dropped))


def _unique(found: Iterable[n.Node]) -> tuple[n.Node, ...]:
    return tuple(dict.fromkeys(found))


def _depends(node: n.Node) -> bool:
    return bool(n.symbols(node) & {"q", "k"})


# -- eliminating q --------------------------------------------------------------------------------
def _unfloor(literal: AtLeast) -> AtLeast:
    """``x // B + R >= 0`` to ``x + B * R >= 0``, so that q and k separate."""
    while True:
        with_q, rest = literal.form.split("q")
        match with_q.terms:
            case ((n.Arith("//", x, n.Const(int(size))), 1 | -1 as c),) if size > 0:
                slack = 0 if c == 1 else size - 1
                literal = AtLeast(linear(x).scale(c) + rest.scale(size) + slack)
            case _:
                return literal


def _eliminate(literals: list[Literal]) -> list[Linear]:
    """Sums of literals whose q parts cancel: conditions on k that no single literal shows."""
    forms = [_unfloor(x).form.split("q") for x in literals if isinstance(x, AtLeast)]
    found = []
    for i, (q_low, rest_low) in enumerate(forms):
        for q_high, rest_high in forms[i + 1 :]:
            if q_low.terms and q_low.terms == q_high.scale(-1).terms:
                found.append(rest_low + rest_high)
    return found


def _at_end(literal: AtLeast) -> Linear | None:
    """The form at the end of the tile where its q part is largest; None if it is not monotone."""
    found = _at_end_of(literal.form)
    return found if found is not None else _at_end_of(_unfloor(literal).form)


def _at_end_of(form: Linear) -> Linear | None:
    with_q, rest = form.split("q")
    if not with_q.terms:
        return form
    directions = {_direction(t) * (1 if c > 0 else -1) for t, c in with_q.terms}
    if len(directions) != 1 or 0 in directions:
        return None
    end = Q_LAST if directions == {1} else Q_FIRST
    return linear(n.substitute(to_node(with_q), {Q: end})) + rest


def _direction(term: n.Node) -> int:
    """1 or -1 if the term does not decrease or increase in q and is free of k, else 0."""
    if "k" in n.symbols(term):
        return 0
    match term:
        case n.Sym("q"):
            return 1
        case n.Arith("//", x, n.Const(int(size))) if size > 0:
            return _direction_of(linear(x))
        case n.Read(table, (*prefix, last)) if table.sorted:
            if any("q" in n.symbols(p) for p in prefix):
                return 0
            return _direction_of(linear(last))
    return 0


def _direction_of(form: Linear) -> int:
    with_q, _ = form.split("q")
    found = {_direction(t) * (1 if c > 0 else -1) for t, c in with_q.terms}
    return found.pop() if len(found) == 1 else 0


# -- solving for k --------------------------------------------------------------------------------
def _bound(
    form: Linear | None,
    lows: list[n.Node],
    highs: list[n.Node],
    conds: list[n.Node],
    prover: Prover,
) -> bool:
    """Turn ``form >= 0`` into a bound on k or a scalar condition. False if that is not possible."""
    if form is None:
        return False
    with_k, rest = form.split("k")
    if not with_k.terms:
        if not prover.nonnegative(rest):
            conds.append(n.Compare(">=", to_node(rest), n.Const(0)))
        return True
    if prover.nonnegative(form):
        return True
    return _solve(with_k, rest, lows, highs)


def _solve(with_k: Linear, rest: Linear, lows: list[n.Node], highs: list[n.Node]) -> bool:
    """Solve ``with_k + rest >= 0`` for k."""
    if len(with_k.terms) != 1:
        return False
    ((term, c),) = with_k.terms
    if c > 0:
        return _solve_term(term, divide_floor(rest, c).scale(-1), lows, highs, above=True)
    return _solve_term(term, divide_floor(rest, -c), lows, highs, above=False)


def _solve_term(
    term: n.Node, bound: Linear, lows: list[n.Node], highs: list[n.Node], *, above: bool
) -> bool:
    """Solve ``term >= bound`` (``above``) or ``term <= bound`` for k."""
    match term:
        case n.Sym("k"):
            if above:
                lows.append(to_node(bound))
            else:
                highs.append(to_node(bound + 1))
            return True
        case n.Arith("//", x, n.Const(int(size))) if size > 0:
            inner, limit = linear(x), bound.scale(size) + (0 if above else size - 1)
        case n.Read(table, (*prefix, last)) if table.sorted and not any(map(_depends, prefix)):
            value = to_node(bound if above else bound + 1)
            count = n.Search(table, tuple(prefix), value)
            inner, limit = linear(last), linear(count) + (0 if above else -1)
        case _:
            return False
    with_k, rest = (inner - limit).split("k") if above else (limit - inner).split("k")
    return _solve(with_k, rest, lows, highs)


# -- residues -------------------------------------------------------------------------------------
def _stride(literal: Residue, tile: TileShape) -> Stride | n.Node | str | None:
    """A stride of keys, or a scalar condition on the tile; None if every tile meets the residue.

    Otherwise, as text, why it cannot be used.
    """
    form, m, width = literal.form, literal.modulus, literal.width
    reason = literal_text(literal)
    with_q, _ = form.split("q")
    with_k, rest = form.split("k")
    if with_q.terms:
        # A full tile holds at least block_m + block_n - 1 values of +-(q - k), or block_m of q.
        unit = all(abs(c) == 1 and t in (Q, K) for t, c in (*with_q.terms, *with_k.terms))
        spans = tile.block_m + tile.block_n - 1 if with_k.terms else tile.block_m
        if unit and spans >= m:
            return None
        return reason if with_k.terms else _meets(literal) or reason
    if len(with_k.terms) != 1 or abs(with_k.terms[0][1]) != 1:
        return reason
    ((term, c),) = with_k.terms
    shift = rest if c == 1 else rest.scale(-1) + (width - 1)
    match term:
        case n.Sym("k"):
            size, inner = 1, Linear((), 0)
        case n.Arith("//", x, n.Const(int(size))) if size > 0:
            k_inner, inner = linear(x).split("k")
            if k_inner != linear(K):
                return reason
        case _:
            return reason
    tokens = inner + shift.scale(size)
    period = m * size
    return Stride(simplify(to_node(_reduce(tokens, period))), period, width * size)


def _meets(literal: Residue) -> n.Node | None:
    """Condition that some q of the tile is in the residue class: a scalar, free of k.

    Between the tile's ends a term ``t`` of q (or of a block of q) takes every value once: the
    class is met at the first one, or after it has wrapped around to 0.
    """
    with_q, rest = literal.form.split("q")
    if len(with_q.terms) != 1 or abs(with_q.terms[0][1]) != 1:
        return None
    ((term, c),) = with_q.terms
    match term:
        case n.Sym("q"):
            pass
        case n.Arith("//", x, n.Const(int(size))) if size > 0:
            if linear(x).split("q")[0] != linear(Q):
                return None
        case _:
            return None
    shift = rest if c == 1 else rest.scale(-1) + (literal.width - 1)
    first, last = (n.substitute(term, {Q: end}) for end in (Q_FIRST, Q_LAST))
    modulus = n.Const(literal.modulus)
    start = n.Arith("%", to_node(_reduce(linear(first) + shift, literal.modulus)), modulus)
    span = simplify(n.Arith("-", last, first))
    meets = n.Compare("<", start, n.Const(literal.width))
    if span is n.Const(0):
        return meets
    return n.Logic("|", meets, n.Compare(">=", n.Arith("+", start, span), modulus))


def _reduce(form: Linear, period: int) -> Linear:
    """The same form modulo ``period``: a smaller constant."""
    return Linear(form.terms, form.const % period)


def _tighten(clause: Clause) -> list[Literal]:
    """Move bounds on a form to the nearest value that its residue class allows."""
    residues = [x for x in clause if isinstance(x, Residue)]
    return [_tighten_one(x, residues) if isinstance(x, AtLeast) else x for x in clause]


def _tighten_one(literal: AtLeast, residues: list[Residue]) -> AtLeast:
    form = literal.form
    for residue in residues:
        gap = residue.form - form
        if gap.is_const:  # form >= 0 and (form + gap) mod m < width
            into = gap.const % residue.modulus
            if into >= residue.width:
                form = form + -(residue.modulus - into)
        total = residue.form + form
        if total.is_const:  # -form <= 0, i.e. y <= c for y = residue.form, c = total
            into = total.const % residue.modulus
            if into >= residue.width:
                form = form + -(into - residue.width + 1)
    return AtLeast(form)
