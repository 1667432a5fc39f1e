"""Nodes to text. The text is valid language and parses back to the identical node."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from maskwright.dsl.nodes import Arith
from maskwright.dsl.nodes import ByHead
from maskwright.dsl.nodes import Call
from maskwright.dsl.nodes import Compare
from maskwright.dsl.nodes import Const
from maskwright.dsl.nodes import Extent
from maskwright.dsl.nodes import Logic
from maskwright.dsl.nodes import Member
from maskwright.dsl.nodes import Node
from maskwright.dsl.nodes import Not
from maskwright.dsl.nodes import Param
from maskwright.dsl.nodes import Read
from maskwright.dsl.nodes import Search
from maskwright.dsl.nodes import Sym
from maskwright.dsl.nodes import Table
from maskwright.dsl.nodes import Where

# Python's own binding strengths, weakest first.
_LEVEL = {"<": 1, "<=": 1, ">": 1, ">=": 1, "==": 1, "!=": 1, "|": 2, "^": 3, "&": 4}
_LEVEL |= {"+": 5, "-": 5, "*": 6, "//": 6, "%": 6, "/": 6}
_UNARY = 7
_ATOM = 8

Spelled: TypeAlias = tuple[str, int]  # text, binding strength
Speller: TypeAlias = Callable[[Node], Spelled]


def to_text(node: Node) -> str:
    """Canonical text of a node."""
    return _cached(node)[0]


def traced_text(node: Node) -> str:
    """The same, without a cache: plain Python that ``torch.compile`` can follow and guard."""
    return _plain(node)[0]


@cache
def _cached(node: Node) -> Spelled:
    return _spell(node, _cached)


def _plain(node: Node) -> Spelled:
    return _spell(node, _plain)


def _spell(node: Node, spell: Speller) -> Spelled:
    """One node over what ``spell`` says of its operands."""

    def text(x: Node) -> str:
        return spell(x)[0]

    match node:
        case Const():
            return node.spelled, _UNARY if node.spelled.startswith("-") else _ATOM
        case Sym(name):
            return name, _ATOM
        case Param():
            return node.spelled, _ATOM
        case Read(table, index):
            return f"{table.spelled}[{', '.join(map(text, index)) or '()'}]", _ATOM
        case Arith("-", Const() as zero, b) if zero.spelled == "0":
            return f"-{_wrap(spell(b), _UNARY)}", _UNARY
        case Arith("min" | "max" as op, a, b):
            return f"{op}imum({text(a)}, {text(b)})", _ATOM
        case Arith(op, a, b) | Compare(op, a, b) | Logic(op, a, b):
            return _binary(op, spell(a), spell(b))
        case Call(name, a):
            return f"{'absolute' if name == 'abs' else name}({text(a)})", _ATOM
        case Where(c, a, b):
            return f"where({text(c)}, {text(a)}, {text(b)})", _ATOM
        case Not(a):
            return f"~{_wrap(spell(a), _UNARY)}", _UNARY
        case Member(value, row):
            owner = f"({text(value)})" if isinstance(value, Const) else _wrap(spell(value), _ATOM)
            return f"{owner}.isin({text(row)}{node.spelled})", _ATOM
        case ByHead(_, masks):
            return f"by_head({node.spelled}, [{', '.join(map(text, masks))}])", _ATOM
        case Search(table, prefix, value):
            where = ", ".join([*map(text, prefix), ":"])
            return f"count_below({table.name}[{where}], {text(value)})", _ATOM
        case Extent(table, axis):
            return f"{table.name}.size({axis})", _ATOM
    msg = f"no text for {type(node).__name__}"
    raise TypeError(msg)


def _binary(op: str, a: Spelled, b: Spelled) -> Spelled:
    level = _LEVEL[op]
    # Comparisons do not chain; the right operand of a left-associative operator needs more.
    left = level + 1 if level == 1 else level
    return f"{_wrap(a, left)} {op} {_wrap(b, level + 1)}", level


def _wrap(spelled: Spelled, level: int) -> str:
    text, own = spelled
    return text if own >= level else f"({text})"


def table_text(table: Table) -> str:
    """Text of a table's declaration; defaults are left out."""
    return table.spelled
