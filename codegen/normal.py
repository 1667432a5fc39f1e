"""Normal form: a mask as a union of clauses, a clause as an intersection of literals.

Literals are integer inequalities, residue classes, or opaque conditions. Integers make every
comparison an inequality: ``a < b`` is ``b - a - 1 >= 0``, ``a == b`` is two of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from maskwright.codegen.algebra import Linear
from maskwright.codegen.algebra import linear
from maskwright.codegen.algebra import to_node
from maskwright.dsl import nodes as n
from maskwright.dsl.text import to_text

MAX_CLAUSES = 64


class TooManyClausesError(Exception):
    """The normal form would be too large; the caller takes the general path."""


@dataclass(frozen=True)
class AtLeast:
    """``form >= 0``."""

    form: Linear

    def negated(self) -> AtLeast:
        """``form < 0``."""
        return AtLeast(self.form.scale(-1) + -1)


@dataclass(frozen=True)
class Residue:
    """``form mod modulus < width`` with the mathematical (non-negative) remainder."""

    form: Linear
    modulus: int
    width: int

    def negated(self) -> Residue:
        """The other residues."""
        return Residue(self.form + -self.width, self.modulus, self.modulus - self.width)


@dataclass(frozen=True)
class Opaque:
    """A condition the algebra does not look into."""

    node: n.Node
    holds: bool = True

    def negated(self) -> Opaque:
        """The opposite condition."""
        return Opaque(self.node, not self.holds)


Literal: TypeAlias = AtLeast | Residue | Opaque
Clause: TypeAlias = tuple[Literal, ...]
Clauses: TypeAlias = list[Clause]

_TRUE: Clauses = [()]
_FALSE: Clauses = []


def clauses(mask: n.Node, *, holds: bool = True, ordered: bool = True) -> Clauses:
    """Disjunctive normal form of ``mask`` (of its negation if not ``holds``).

    Args:
        ordered: drop clauses that another one contains, by the order of sorted tables, too.

    Raises:
        TooManyClausesError: beyond ``MAX_CLAUSES``.
    """
    found = _dnf(mask, holds)
    return absorb(found) if ordered else found


def _dnf(node: n.Node, holds: bool) -> Clauses:
    match node:
        case n.Const(value):
            return _TRUE if bool(value) == holds else _FALSE
        case n.Not(a):
            return _dnf(a, not holds)
        case n.Logic("^", a, b):
            same = _either(
                _both(_dnf(a, True), _dnf(b, True)), _both(_dnf(a, False), _dnf(b, False))
            )
            differ = _either(
                _both(_dnf(a, True), _dnf(b, False)), _both(_dnf(a, False), _dnf(b, True))
            )
            return differ if holds else same
        case n.Logic(op, a, b):
            join = _both if (op == "&") == holds else _either
            return join(_dnf(a, holds), _dnf(b, holds))
        case n.Compare(op, a, b):
            return _compare(op, a, b, holds)
        case n.ByHead(kinds, masks):
            return _by_head(kinds, masks, holds)
    return [(Opaque(node, holds),)]


def _both(a: Clauses, b: Clauses) -> Clauses:
    if len(a) * len(b) > MAX_CLAUSES:
        raise TooManyClausesError
    joined = (_conjoin((*x, *y)) for x in a for y in b)
    return [c for c in joined if c is not None]


def _either(a: Clauses, b: Clauses) -> Clauses:
    if len(a) + len(b) > MAX_CLAUSES:
        raise TooManyClausesError
    return [*a, *b]


def _by_head(kinds: tuple[int, ...] | n.Table, masks: tuple[n.Node, ...], holds: bool) -> Clauses:
    result: Clauses = []
    for i, mask in enumerate(masks):
        chosen: Clauses = [(Opaque(kind_is(kinds, i)),)]
        result = _either(result, _both(chosen, _dnf(mask, holds)))
    if not holds and isinstance(kinds, n.Table):
        kind = n.Read(kinds, (n.Sym("h"),))
        none = n.Logic(
            "|", n.Compare("<", kind, n.Const(0)), n.Compare(">=", kind, n.Const(len(masks)))
        )
        result = _either(result, [(Opaque(none),)])
    return result


def kind_is(kinds: tuple[int, ...] | n.Table, number: int) -> n.Node:
    """Scalar condition: head ``h`` has this kind. Runs of heads become ranges."""
    head = n.Sym("h")
    if isinstance(kinds, n.Table):
        return n.Compare("==", n.Read(kinds, (head,)), n.Const(number))
    condition: n.Node = n.Const(value=False)
    for first, last in _runs([h for h, kind in enumerate(kinds) if kind == number]):
        inside: n.Node = n.Compare("==", head, n.Const(first))
        if last > first:
            low = n.Compare(">=", head, n.Const(first))
            inside = n.Logic("&", low, n.Compare("<=", head, n.Const(last)))
        empty = condition is n.Const(value=False)
        condition = inside if empty else n.Logic("|", condition, inside)
    return condition


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for x in numbers:
        if runs and x == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], x)
        else:
            runs.append((x, x))
    return runs


# -- comparisons ----------------------------------------------------------------------------------
def _compare(op: str, a: n.Node, b: n.Node, holds: bool) -> Clauses:
    if not holds:
        op = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}[op]
    form = linear(n.Arith("-", a, b))
    if not n.symbols(n.Compare("<", a, b)) & {"q", "k"}:
        # Scalar conditions stay as they are: the kernel evaluates them once.
        return _scalar(op, a, b, form)
    match op:
        case ">=":
            return _at_least(form)
        case ">":
            return _at_least(form + -1)
        case "<=":
            return _at_least(form.scale(-1))
        case "<":
            return _at_least(form.scale(-1) + -1)
    residue = _residue_equal(form)
    if residue is not None:
        return [(residue if op == "==" else residue.negated(),)]
    above, below = _at_least(form), _at_least(form.scale(-1))
    if op == "==":
        return _both(above, below)
    return _either(_at_least(form + -1), _at_least(form.scale(-1) + -1))


def _scalar(op: str, a: n.Node, b: n.Node, form: Linear) -> Clauses:
    if form.is_const:
        value = {
            "<": form.const < 0,
            "<=": form.const <= 0,
            ">": form.const > 0,
            ">=": form.const >= 0,
            "==": form.const == 0,
            "!=": form.const != 0,
        }[op]
        return _TRUE if value else _FALSE
    if op == "!=":
        return [(Opaque(n.Compare("==", a, b), holds=False),)]
    return [(Opaque(n.Compare(op, a, b)),)]  # type: ignore[arg-type]


def _residue_equal(form: Linear) -> Residue | None:
    """``x % m == r`` for constants m > 0 and 0 <= r < m, as a residue class of x."""
    match form.terms:
        case ((n.Arith("%", x, n.Const(int(m))), 1 | -1 as c),) if m > 0:
            r = -form.const * c
            return Residue(linear(x) + -r, m, 1) if 0 <= r < m else None
    return None


def _at_least(form: Linear) -> Clauses:
    """``form >= 0`` with choices (max, min, abs, where) and constant remainders opened."""
    match form.terms:
        case ((n.Arith("%", x, n.Const(int(m))), c),) if m > 0 and abs(c) == 1:
            return _residue_range(linear(x), m, form.const, c)
    for term, c in form.terms:
        if not n.symbols(term) & {"q", "k"}:
            continue
        rest = form - Linear(((term, c),), 0)
        match term:
            case n.Arith("min" | "max" as op, a, b):
                parts = [_at_least(rest + linear(x).scale(c)) for x in (a, b)]
                return _either(*parts) if (op == "max") == (c > 0) else _both(*parts)
            case n.Call("abs", a):
                parts = [_at_least(rest + linear(a).scale(sign * c)) for sign in (1, -1)]
                return _either(*parts) if c > 0 else _both(*parts)
            case n.Where(cond, a, b):
                yes = _both(_dnf(cond, True), _at_least(rest + linear(a).scale(c)))
                no = _both(_dnf(cond, False), _at_least(rest + linear(b).scale(c)))
                return _either(yes, no)
    if form.is_const:
        return _TRUE if form.const >= 0 else _FALSE
    return [(AtLeast(form),)]


def _residue_range(x: Linear, m: int, const: int, c: int) -> Clauses:
    """``x % m >= -const`` (c = 1) or ``x % m <= const`` (c = -1)."""
    low, high = (max(-const, 0), m - 1) if c == 1 else (0, min(const, m - 1))
    if low > high:
        return _FALSE
    if high - low == m - 1:
        return _TRUE
    return [(Residue(x + -low, m, high - low + 1),)]


# -- simplification -------------------------------------------------------------------------------
def _conjoin(literals: Iterable[Literal]) -> Clause | None:
    """Merge the literals of a clause; None if they contradict each other."""
    bounds: dict[tuple[tuple[n.Node, int], ...], int] = {}
    others: dict[Literal, None] = {}
    for literal in literals:
        match literal:
            case AtLeast(form):
                bounds[form.terms] = min(bounds.get(form.terms, form.const), form.const)
            case _:
                if literal.negated() in others:
                    return None
                others[literal] = None
    for terms, const in bounds.items():
        opposite = bounds.get(Linear(terms, 0).scale(-1).terms)
        if opposite is not None and opposite + const < 0:
            return None
    return (*(AtLeast(Linear(t, c)) for t, c in bounds.items()), *others)


def absorb(found: Clauses) -> Clauses:
    """Drop clauses that another clause contains."""
    kept: Clauses = []
    for i, clause in enumerate(found):
        wider = [*kept, *found[i + 1 :]]
        if not any(_contains(other, clause) for other in wider):
            kept.append(clause)
    return kept


def _contains(wide: Clause, narrow: Clause) -> bool:
    """Every literal of ``wide`` follows from one of ``narrow``."""
    return all(implied(narrow, want) for want in wide)


def implied(clause: Clause, want: Literal) -> bool:
    """Some literal of the clause implies ``want``."""
    return any(_implies(have, want) for have in clause)


def _implies(have: Literal, want: Literal) -> bool:
    if have == want:
        return True
    if not (isinstance(have, AtLeast) and isinstance(want, AtLeast)):
        return False
    if have.form.terms == want.form.terms:
        return have.form.const <= want.form.const
    order = _sorted_order(have.form)
    return order is not None and _implies(AtLeast(order), want)


def _sorted_order(form: Linear) -> Linear | None:
    """``T[.., x] > T[.., y]`` of a sorted table implies ``x > y``: the form ``x - y - 1``.

    Holds only for reads inside the table; the schedule visits everything when that fails.
    """
    if len(form.terms) != 2 or form.const > -1:
        return None
    (a, ca), (b, cb) = form.terms
    if not (isinstance(a, n.Read) and isinstance(b, n.Read) and {ca, cb} == {1, -1}):
        return None
    if a.table != b.table or not a.table.sorted or a.index[:-1] != b.index[:-1]:
        return None
    high, low = (a, b) if ca == 1 else (b, a)
    return linear(n.Arith("-", high.index[-1], low.index[-1])) + -1


def literal_text(literal: Literal) -> str:
    """A literal in the language's own words."""
    match literal:
        case AtLeast(form):
            return f"{to_text(to_node(form))} >= 0"
        case Residue(form, m, 1):
            return f"({to_text(to_node(form))}) % {m} == 0"
        case Residue(form, m, width):
            return f"({to_text(to_node(form))}) % {m} < {width}"
        case Opaque(node, holds):
            return to_text(node) if holds else f"~({to_text(node)})"
