"""The nodes of mask and score expressions: frozen, interned, on two screens.

Equal nodes are identical objects, so ``is`` compares structure and memo tables are cheap.
Nodes carry no operators: the user's handle (``expr.Expr``) does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from dataclasses import field
from dataclasses import fields
from functools import cache
from typing import Any
from typing import ClassVar
from typing import Literal
from typing import TypeAlias

Dtype: TypeAlias = Literal["int", "bool", "float"]

# Symbols a user writes. `q` is a position in key coordinates: row + q_offset.
POSITIONS = ("q", "k")
SCALARS = ("b", "h", "kv_head", "q_len", "kv_len")
SCORE = "s"


class _Interned(type):
    """Metaclass: one object for each (class, field values)."""

    _table: ClassVar[dict[tuple[Any, ...], Any]] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        node = super().__call__(*args, **kwargs)
        values = tuple(vars(node).values())
        # The types are part of the key: Const(1), Const(True) and Const(1.0) differ.
        key = (cls, *values, *(type(v) for v in values))
        return cls._table.setdefault(key, node)


@dataclass(frozen=True, eq=False)
class Node(metaclass=_Interned):
    """Base of all nodes. Identity is structural equality."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self) if f.init)


def _spelled() -> Any:
    """Text of what a node holds besides nodes, written when it is made.

    A tracer may take a number for a symbol; it takes a string for what it is.
    """
    return field(init=False, repr=False, compare=False)


def _spell(node: Const | Param | Table | Member | ByHead, text: str) -> None:
    object.__setattr__(node, "spelled", text)


@dataclass(frozen=True, eq=False)
class Const(Node):
    """A literal: int, bool or float."""

    value: int | bool | float
    spelled: str = _spelled()

    def __post_init__(self) -> None:
        _spell(self, repr(self.value))


@dataclass(frozen=True, eq=False)
class Sym(Node):
    """An index symbol (``q``, ``k``, ``b``, ...), the score ``s``, or a tile symbol of the compiler."""

    name: str


@dataclass(frozen=True, eq=False)
class Param(Node):
    """A runtime int32 scalar with an optional promised range [min, max]."""

    name: str
    min: int | None = None
    max: int | None = None
    spelled: str = _spelled()

    def __post_init__(self) -> None:
        parts = [f'"{self.name}"']
        parts += [] if self.min is None else [f"min={self.min}"]
        parts += [] if self.max is None else [f"max={self.max}"]
        _spell(self, f"param({', '.join(parts)})")


@dataclass(frozen=True)
class Table:
    """Declaration of a runtime tensor: name, rank, promise of sortedness, element kind."""

    name: str
    ndim: int = 1
    sorted: bool = False
    dtype: Dtype = "int"
    spelled: str = _spelled()

    def __post_init__(self) -> None:
        # Defaults are left out.
        parts = [f'"{self.name}"']
        parts += [] if self.ndim == 1 else [f"ndim={self.ndim}"]
        parts += ["sorted=True"] if self.sorted else []
        parts += [] if self.dtype == "int" else [f"dtype={self.dtype}"]
        _spell(self, f"table({', '.join(parts)})")


@dataclass(frozen=True, eq=False)
class Read(Node):
    """``table[index]``. Outside the tensor: -1 (int), False (bool), 0.0 (float).

    With one index fewer than the table's rank it is a row, legal only inside ``Member``.
    """

    table: Table
    index: tuple[Node, ...]


ArithOp: TypeAlias = Literal["+", "-", "*", "//", "%", "/", "min", "max"]


@dataclass(frozen=True, eq=False)
class Arith(Node):
    """Binary arithmetic; ``//`` and ``%`` floor as in Python."""

    op: ArithOp
    a: Node
    b: Node


FunctionName: TypeAlias = Literal["abs", "exp", "log", "tanh", "sigmoid"]


@dataclass(frozen=True, eq=False)
class Call(Node):
    """A unary function: ``abs`` on integers and floats, the others on floats."""

    name: FunctionName
    a: Node


@dataclass(frozen=True, eq=False)
class Where(Node):
    """``a`` where the condition holds, else ``b``."""

    cond: Node
    a: Node
    b: Node


CompareOp: TypeAlias = Literal["<", "<=", ">", ">=", "==", "!="]


@dataclass(frozen=True, eq=False)
class Compare(Node):
    """A comparison of two numbers."""

    op: CompareOp
    a: Node
    b: Node


LogicOp: TypeAlias = Literal["&", "|", "^"]


@dataclass(frozen=True, eq=False)
class Logic(Node):
    """Boolean algebra of two masks."""

    op: LogicOp
    a: Node
    b: Node


@dataclass(frozen=True, eq=False)
class Not(Node):
    """Negation of a mask."""

    a: Node


@dataclass(frozen=True, eq=False)
class Member(Node):
    """``e <= value < e + run`` for an entry e of the runtime row; the padding value -1 is no entry."""

    value: Node
    row: Read
    run: int = 1
    spelled: str = _spelled()

    def __post_init__(self) -> None:
        _spell(self, "" if self.run == 1 else f", run={self.run}")


@dataclass(frozen=True, eq=False)
class ByHead(Node):
    """Head h uses ``masks[kinds[h]]``; a kind outside the list attends to nothing."""

    kinds: tuple[int, ...] | Table
    masks: tuple[Node, ...]
    spelled: str = _spelled()

    def __post_init__(self) -> None:
        kinds = self.kinds
        _spell(self, kinds.spelled if isinstance(kinds, Table) else repr(list(kinds)))


@dataclass(frozen=True, eq=False)
class Search(Node):
    """Number of entries below ``value`` among the first kv_len of a sorted table's row.

    Made by the compiler only. ``prefix`` are the row's indices; a row outside the tensor reads
    as -1 everywhere.
    """

    table: Table
    prefix: tuple[Node, ...]
    value: Node


@dataclass(frozen=True, eq=False)
class Extent(Node):
    """Length of a table along an axis. Made by the compiler only."""

    table: Table
    axis: int


def dtype_of(node: Node) -> Dtype:
    """Element kind of a node's value."""
    match node:
        case Const(bool()) | Compare() | Logic() | Not() | Member() | ByHead():
            return "bool"
        case Const(float()) | Sym("s") | Call("exp" | "log" | "tanh" | "sigmoid") | Arith("/"):
            return "float"
        case Read(table):
            return table.dtype
        case Arith(_, a, b) | Where(_, a, b):
            return _wider(dtype_of(a), dtype_of(b))
        case Call(_, a):
            return dtype_of(a)
    return "int"


def _wider(a: Dtype, b: Dtype) -> Dtype:
    order: tuple[Dtype, ...] = ("bool", "int", "float")
    return max(a, b, key=order.index)


def children(node: Node) -> tuple[Node, ...]:
    """Direct operands of a node, in reading order."""
    match node:
        case Read(_, index):
            return index
        case Arith(_, a, b) | Compare(_, a, b) | Logic(_, a, b):
            return (a, b)
        case Call(_, a) | Not(a):
            return (a,)
        case Where(c, a, b):
            return (c, a, b)
        case Member(value, row):
            return (value, row)
        case ByHead(_, masks):
            return masks
        case Search(_, prefix, value):
            return (*prefix, value)
    return ()


def rebuild(node: Node, parts: tuple[Node, ...]) -> Node:
    """The same node over other operands."""
    match node:
        case Read(table, _):
            return Read(table, parts)
        case Arith(op, _, _):
            return Arith(op, *parts)
        case Compare(op, _, _):
            return Compare(op, *parts)
        case Logic(op, _, _):
            return Logic(op, *parts)
        case Call(name, _):
            return Call(name, *parts)
        case Not():
            return Not(*parts)
        case Where():
            return Where(*parts)
        case Member():
            row = parts[1]
            assert isinstance(row, Read)
            return Member(parts[0], row, node.run)
        case ByHead(kinds, _):
            return ByHead(kinds, parts)
        case Search(table, _, _):
            return Search(table, parts[:-1], parts[-1])
    return node


def walk(node: Node) -> list[Node]:
    """Every distinct node below and including ``node``, operands before users."""
    seen: dict[Node, None] = {}

    def visit(n: Node) -> None:
        if n in seen:
            return
        for child in children(n):
            visit(child)
        seen[n] = None

    visit(node)
    return list(seen)


def substitute(node: Node, table: dict[Node, Node]) -> Node:
    """``node`` with every key of ``table`` replaced by its value."""
    memo: dict[Node, Node] = dict(table)

    def visit(n: Node) -> Node:
        if n not in memo:
            parts = children(n)
            new = tuple(visit(p) for p in parts)
            memo[n] = n if new == parts else rebuild(n, new)
        return memo[n]

    return visit(node)


@cache
def symbols(node: Node) -> frozenset[str]:
    """Names of all ``Sym`` below ``node``; a ``ByHead`` reads ``h``."""
    match node:
        case Sym(name):
            return frozenset((name,))
        case ByHead():
            return frozenset(("h",)).union(*map(symbols, children(node)))
    return frozenset[str]().union(*map(symbols, children(node)))


def params(node: Node) -> tuple[Param, ...]:
    """All parameters below ``node``, by name."""
    found = {n.name: n for n in walk(node) if isinstance(n, Param)}
    return tuple(found[name] for name in sorted(found))


def tables(node: Node) -> tuple[Table, ...]:
    """All tables below ``node``, by name."""
    found: dict[str, Table] = {}
    for n in walk(node):
        match n:
            case (
                Read(table, _)
                | ByHead(Table() as table, _)
                | Search(table, _, _)
                | Extent(table, _)
            ):
                found[table.name] = table
    return tuple(found[name] for name in sorted(found))


@cache
def structure(node: Node) -> str:
    """Stable hash of a node's structure, in time linear in its distinct parts."""
    values = [
        structure(v) if isinstance(v, Node) else tuple(map(_part, v)) if isinstance(v, tuple) else v
        for v in _held(node)
    ]
    return digest(f"{type(node).__name__}{values!r}")


def _held(node: Node) -> tuple[Any, ...]:
    match node:
        case Member(
            value, row, 1
        ):  # hashed as before there were runs: tuned entries are kept by it
            return value, row
    return tuple(vars(node).values())


def _part(value: Any) -> Any:
    return structure(value) if isinstance(value, Node) else value


def digest(text: str) -> str:
    """Stable 16-digit hash of a canonical text; independent of PYTHONHASHSEED."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
