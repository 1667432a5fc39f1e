"""Nodes to text. The text is valid language and parses back to the identical node."""

from __future__ import annotations

from functools import cache

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


def to_text(node: Node) -> str:
    """Canonical text of a node."""
    return _text(node)[0]


@cache
def _text(node: Node) -> tuple[str, int]:
    """(text, binding strength)."""
    match node:
        case Const(value):
            return repr(value), _UNARY if not isinstance(value, bool) and value < 0 else _ATOM
        case Sym(name):
            return name, _ATOM
        case Param():
            return _param(node), _ATOM
        case Read(table, index):
            return f"{table_text(table)}[{', '.join(map(to_text, index)) or '()'}]", _ATOM
        case Arith("-", Const(int(0)), b):
            return f"-{_wrap(b, _UNARY)}", _UNARY
        case Arith("min" | "max" as op, a, b):
            return f"{op}imum({to_text(a)}, {to_text(b)})", _ATOM
        case Arith(op, a, b) | Compare(op, a, b) | Logic(op, a, b):
            return _binary(op, a, b)
        case Call(name, a):
            return f"{'absolute' if name == 'abs' else name}({to_text(a)})", _ATOM
        case Where(c, a, b):
            return f"where({to_text(c)}, {to_text(a)}, {to_text(b)})", _ATOM
        case Not(a):
            return f"~{_wrap(a, _UNARY)}", _UNARY
        case Member(value, row):
            owner = f"({to_text(value)})" if isinstance(value, Const) else _wrap(value, _ATOM)
            return f"{owner}.isin({to_text(row)})", _ATOM
        case ByHead(kinds, masks):
            head = table_text(kinds) if isinstance(kinds, Table) else repr(list(kinds))
            return f"by_head({head}, [{', '.join(map(to_text, masks))}])", _ATOM
        case Search(table, prefix, value):
            where = ", ".join([*map(to_text, prefix), ":"])
            return f"count_below({table.name}[{where}], {to_text(value)})", _ATOM
        case Extent(table, axis):
            return f"{table.name}.size({axis})", _ATOM
    msg = f"no text for {type(node).__name__}"
    raise TypeError(msg)


def _binary(op: str, a: Node, b: Node) -> tuple[str, int]:
    level = _LEVEL[op]
    # Comparisons do not chain; the right operand of a left-associative operator needs more.
    left = level + 1 if level == 1 else level
    return f"{_wrap(a, left)} {op} {_wrap(b, level + 1)}", level


def _wrap(node: Node, level: int) -> str:
    text, own = _text(node)
    return text if own >= level else f"({text})"


def _param(node: Param) -> str:
    parts = [f'"{node.name}"']
    parts += [] if node.min is None else [f"min={node.min}"]
    parts += [] if node.max is None else [f"max={node.max}"]
    return f"param({', '.join(parts)})"


def table_text(table: Table) -> str:
    """Text of a table's declaration; defaults are left out."""
    parts = [f'"{table.name}"']
    parts += [] if table.ndim == 1 else [f"ndim={table.ndim}"]
    parts += ["sorted=True"] if table.sorted else []
    parts += [] if table.dtype == "int" else [f"dtype={table.dtype}"]
    return f"table({', '.join(parts)})"
