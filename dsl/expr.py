"""``Expr``: the user's handle. It overloads operators and builds nodes; it is never evaluated as a bool."""

from __future__ import annotations

import math
from typing import NoReturn
from typing import TypeAlias
from typing import Union

import numpy as np

from maskwright.dsl import nodes as n
from maskwright.dsl.errors import MaskError
from maskwright.dsl.text import to_text

Operand: TypeAlias = Union["Expr", int, bool, float]
MAX_RUN = 2**20  # a position and a run fit int32 with room to spare


class Expr:
    """An integer, boolean or float expression over positions, heads, lengths and runtime values.

    Boolean expressions are masks: True means attend. Combine them with ``& | ^ ~``.
    ``==`` of two masks compares their structure and returns a Python bool;
    ``==`` of numbers, or of two bool table reads, builds a mask.
    """

    __slots__ = ("node",)
    __array_ufunc__ = None  # numpy scalars on the left must defer to us

    def __init__(self, node: n.Node) -> None:
        self.node = node

    # -- identity ---------------------------------------------------------------------------
    def __str__(self) -> str:
        return to_text(self.node)

    def __repr__(self) -> str:
        return f"<{self.dtype} {to_text(self.node)}>"

    def __hash__(self) -> int:
        return int(self.digest[:15], 16)

    @property
    def digest(self) -> str:
        """Stable 16-digit structural hash, the same in every process."""
        return n.digest(to_text(self.node))

    @property
    def dtype(self) -> n.Dtype:
        """``int``, ``bool`` or ``float``."""
        return n.dtype_of(self.node)

    def equals(self, other: object) -> bool:
        """Structural equality."""
        return isinstance(other, Expr) and self.node is other.node

    def __bool__(self) -> NoReturn:
        raise MaskError(
            "a mask expression has no truth value in Python: `and`, `or`, `not`, `if` and chained "
            "comparisons cannot be traced",
            expression=self,
            fix="write `a & b`, `a | b`, `~a`, `mw.where(cond, x, y)`, and "
            "`(lo <= x) & (x < hi)` with parentheses around each comparison",
        )

    def __iter__(self) -> NoReturn:
        raise MaskError("an expression cannot be iterated over", expression=self)

    # -- arithmetic -------------------------------------------------------------------------
    def __add__(self, o: Operand) -> Expr:
        return arith("+", self, o)

    def __radd__(self, o: Operand) -> Expr:
        return arith("+", o, self)

    def __sub__(self, o: Operand) -> Expr:
        return arith("-", self, o)

    def __rsub__(self, o: Operand) -> Expr:
        return arith("-", o, self)

    def __mul__(self, o: Operand) -> Expr:
        return arith("*", self, o)

    def __rmul__(self, o: Operand) -> Expr:
        return arith("*", o, self)

    def __floordiv__(self, o: Operand) -> Expr:
        return arith("//", self, o)

    def __rfloordiv__(self, o: Operand) -> Expr:
        return arith("//", o, self)

    def __mod__(self, o: Operand) -> Expr:
        return arith("%", self, o)

    def __rmod__(self, o: Operand) -> Expr:
        return arith("%", o, self)

    def __truediv__(self, o: Operand) -> Expr:
        return arith("/", self, o)

    def __rtruediv__(self, o: Operand) -> Expr:
        return arith("/", o, self)

    def __neg__(self) -> Expr:
        return arith("-", 0, self)

    def __pos__(self) -> Expr:
        return self

    def __abs__(self) -> Expr:
        return Expr(n.Call("abs", as_number(self)))

    # -- comparison -------------------------------------------------------------------------
    def __lt__(self, o: Operand) -> Expr:
        return compare("<", self, o)

    def __le__(self, o: Operand) -> Expr:
        return compare("<=", self, o)

    def __gt__(self, o: Operand) -> Expr:
        return compare(">", self, o)

    def __ge__(self, o: Operand) -> Expr:
        return compare(">=", self, o)

    def __eq__(self, o: object) -> Expr | bool:  # type: ignore[override]
        return equal(self, o)

    def __ne__(self, o: object) -> Expr | bool:  # type: ignore[override]
        same = equal(self, o)
        return ~same if isinstance(same, Expr) else not same

    # -- boolean algebra --------------------------------------------------------------------
    def __and__(self, o: Operand) -> Expr:
        return logic("&", self, o)

    def __rand__(self, o: Operand) -> Expr:
        return logic("&", o, self)

    def __or__(self, o: Operand) -> Expr:
        return logic("|", self, o)

    def __ror__(self, o: Operand) -> Expr:
        return logic("|", o, self)

    def __xor__(self, o: Operand) -> Expr:
        return logic("^", self, o)

    def __rxor__(self, o: Operand) -> Expr:
        return logic("^", o, self)

    def __invert__(self) -> Expr:
        return Expr(n.Not(as_bool(self)))

    def isin(self, row: Expr, *, run: int = 1) -> Expr:
        """Membership in a runtime list: ``e <= self < e + run`` for an entry e.

        Args:
            row: a table read with its last index left out, e.g. ``cols[b, h]`` for a table of
                rank 3. Entries are int32 in any order; -1 is padding and never a member.
            run: integers in a row that an entry stands for: itself, and those after it.

        Raises:
            MaskError: if ``row`` is not such a read, or ``run`` no positive integer.
        """
        if type(run) is not int or not 1 <= run <= MAX_RUN:
            raise MaskError(
                f"run is an integer from 1 to {MAX_RUN}, not {run!r}",
                expression=f"{self}.isin({row}, run={run!r})",
                fix="run=64, say: each entry then stands for itself and the 63 integers after it",
            )
        match getattr(row, "node", None):
            case n.Read(table, index) as read if (
                len(index) == table.ndim - 1 and table.dtype == "int"
            ):
                return Expr(n.Member(as_int(self), read, run))
        raise MaskError(
            "isin() takes a row of an integer table: a read with its last index left out",
            expression=f"{self}.isin({row})",
            fix='for `cols = mw.table("cols", ndim=3)` write `k.isin(cols[b, h])`',
        )


class TableHandle:
    """A declared runtime tensor; index it with explicit indices: ``doc_id[b, q]``."""

    __slots__ = ("table",)

    def __init__(self, table: n.Table) -> None:
        self.table = table

    def __getitem__(self, index: Operand | tuple[Operand, ...]) -> Expr:
        parts = index if isinstance(index, tuple) else (index,)
        table = self.table
        whole = len(parts) == table.ndim
        row = len(parts) == table.ndim - 1 and table.dtype == "int"
        if not (whole or row):
            raise MaskError(
                f'table "{table.name}" has {table.ndim} dimension(s) but is read with {len(parts)} index(es)',
                expression=f"{table.name}[{', '.join(map(str, parts))}]",
                fix="give every index explicitly, e.g. doc_id[b, q]; leave out only the last one, inside isin()",
            )
        return Expr(n.Read(table, tuple(as_int(p) for p in parts)))

    def __repr__(self) -> str:
        return f"<table {self.table.name} ndim={self.table.ndim}>"


# -- building nodes -----------------------------------------------------------------------------
def node_of(value: object) -> n.Node:
    """The node of an operand: an ``Expr`` or a Python or numpy number."""
    match value:
        case Expr():
            return value.node
        case bool() | np.bool_():
            return n.Const(bool(value))
        case int() | np.integer() if -(2**31) <= value < 2**31:
            return n.Const(int(value))
        case int() | np.integer():
            raise MaskError("integer constants are int32", expression=value)
        case float() | np.floating() if math.isfinite(value):
            return n.Const(float(value) + 0.0)  # -0.0 is 0.0
        case float() | np.floating():
            raise MaskError("constants are finite numbers", expression=value)
    fix = "use mw.param or mw.table for runtime values, integers for constants"
    if isinstance(value, TableHandle):
        fix = f"read the table with explicit indices, e.g. {value.table.name}[b, q]"
    raise MaskError(
        f"{type(value).__name__} cannot be part of a mask expression", expression=value, fix=fix
    )


def as_bool(value: object) -> n.Node:
    """Node of a boolean operand."""
    node = node_of(value)
    if n.dtype_of(node) != "bool":
        raise MaskError(
            f"`& | ^ ~` combine masks, but this is {n.dtype_of(node)}",
            expression=to_text(node),
            fix="compare it first, and put parentheses around each comparison: `(k <= q) & (k < 64)`",
        )
    _refuse_row(node)
    return node


def as_number(value: object) -> n.Node:
    """Node of an integer or float operand."""
    node = node_of(value)
    if n.dtype_of(node) == "bool":
        raise MaskError(
            "arithmetic needs numbers, but this is a mask",
            expression=to_text(node),
            fix="use mw.where(mask, 1, 0)",
        )
    _refuse_row(node)
    return node


def as_int(value: object) -> n.Node:
    """Node of an integer operand."""
    node = as_number(value)
    if n.dtype_of(node) == "float":
        raise MaskError("an integer is needed here, but this is a float", expression=to_text(node))
    return node


def _refuse_row(node: n.Node) -> None:
    if isinstance(node, n.Read) and len(node.index) < node.table.ndim:
        raise MaskError(
            f'a row of table "{node.table.name}" is no value',
            expression=to_text(node),
            fix="give its last index, or use it as x.isin(row)",
        )


def arith(op: n.ArithOp, a: object, b: object) -> Expr:
    """Binary arithmetic; refuses division by the constant 0 and integer true division."""
    x, y = as_number(a), as_number(b)
    kinds = {n.dtype_of(x), n.dtype_of(y)}
    if op in ("//", "%"):
        if "float" in kinds:
            raise MaskError(f"`{op}` is for integers", expression=f"{to_text(x)} {op} {to_text(y)}")
        if isinstance(y, n.Const) and y.value == 0:
            raise MaskError("division by zero", expression=f"{to_text(x)} {op} 0")
    if op == "/" and kinds == {"int"}:
        raise MaskError(
            "`/` is for scores; positions are integers",
            expression=f"{to_text(x)} / {to_text(y)}",
            fix="use `//` (floor division)",
        )
    match x, y, op:
        # Fold constants where text could not tell them apart: -5 is a literal, not 0 - 5.
        case n.Const(int(0)), n.Const(v), "-" if not isinstance(v, bool):
            return Expr(n.Const(-v))
    return Expr(n.Arith(op, x, y))


def compare(op: n.CompareOp, a: object, b: object) -> Expr:
    """Comparison of two numbers."""
    return Expr(n.Compare(op, as_number(a), as_number(b)))


def equal(a: Expr, b: object) -> Expr | bool:
    """``==``: structural for masks, elementwise for numbers and bool table reads."""
    if not isinstance(b, (Expr, bool, int, float, np.integer, np.bool_, np.floating)):
        return False
    y = node_of(b)
    if a.dtype != "bool" and n.dtype_of(y) != "bool":
        return compare("==", a, b)
    if isinstance(a.node, n.Read) and isinstance(y, n.Read):
        return Expr(n.Not(n.Logic("^", as_bool(a), as_bool(b))))
    return a.node is y


def logic(op: n.LogicOp, a: object, b: object) -> Expr:
    """Boolean algebra."""
    return Expr(n.Logic(op, as_bool(a), as_bool(b)))
