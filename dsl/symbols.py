"""What a user imports: index symbols, ``param``, ``table``, functions, ``by_head`` and ``@mask``."""

from __future__ import annotations

import functools
import inspect
import keyword
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from maskwright.dsl import nodes as n
from maskwright.dsl.errors import MaskError
from maskwright.dsl.expr import Expr
from maskwright.dsl.expr import Operand
from maskwright.dsl.expr import TableHandle
from maskwright.dsl.expr import arith
from maskwright.dsl.expr import as_bool
from maskwright.dsl.expr import as_number
from maskwright.dsl.expr import node_of

q = Expr(n.Sym("q"))
k = Expr(n.Sym("k"))
b = Expr(n.Sym("b"))
h = Expr(n.Sym("h"))
kv_head = Expr(n.Sym("kv_head"))
q_len = Expr(n.Sym("q_len"))
kv_len = Expr(n.Sym("kv_len"))
s = Expr(n.Sym("s"))

INDEX_SYMBOLS = {
    "q": q,
    "k": k,
    "b": b,
    "h": h,
    "kv_head": kv_head,
    "q_len": q_len,
    "kv_len": kv_len,
}
# Keyword arguments of `attention` and friends: a runtime value of that name could not be given.
RESERVED = frozenset(INDEX_SYMBOLS) | {
    *("s", "query", "key", "value", "mask", "score", "scale", "sinks", "q_offset", "return_lse"),
    *("backend", "prepared", "batch", "heads", "kv_heads", "path", "param", "table", "where"),
    *("minimum", "maximum", "absolute", "by_head", "softcap", "tanh", "exp", "log", "sigmoid"),
    *("True", "False", "isin", "dtype", "device", "tile", "arch", "config", "op", "seed"),
    *("head_dim", "value_dim", "at", "budget"),
}


def _check_name(name: str, what: str) -> None:
    ok = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    if not ok or name in RESERVED or name.startswith("_"):
        raise MaskError(
            f"a {what} needs a plain Python name that is not in use", expression=repr(name)
        )


def param(name: str, *, min: int | None = None, max: int | None = None) -> Expr:  # noqa: A002
    """A runtime int32 scalar, given by name at the call; a new value never recompiles.

    Args:
        name: keyword under which the value is given.
        min: promised smallest value; checked at every call, and used to tighten loop bounds.
        max: promised largest value, likewise.

    >>> str(param("window", min=1))
    'param("window", min=1)'
    """
    _check_name(name, "param")
    for bound in (min, max):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
            raise MaskError("min and max of a param are integers", expression=f"{name}: {bound!r}")
    if min is not None and max is not None and min > max:
        raise MaskError("min of a param is above its max", expression=f"{name}: [{min}, {max}]")
    return Expr(n.Param(name, min, max))


def table(name: str, ndim: int = 1, *, sorted: bool = False, dtype: Any = int) -> TableHandle:  # noqa: A002
    """A runtime tensor, given by name at the call and read with explicit indices.

    Args:
        name: keyword under which the tensor is given.
        ndim: its rank.
        sorted: promise that values do not decrease along the last axis.
        dtype: ``int`` (int32 or int64 tensors), ``bool``, or ``float`` (score expressions only).

    A read outside the tensor touches no memory and yields -1 (False for bool, 0.0 for float).

    >>> str(table("doc_id", ndim=2)[b, q])
    'table("doc_id", ndim=2)[b, q]'
    """
    _check_name(name, "table")
    if isinstance(ndim, bool) or not isinstance(ndim, int) or not 1 <= ndim <= 6:
        raise MaskError("a table has 1 to 6 dimensions", expression=f"{name}: ndim={ndim!r}")
    kinds: dict[Any, n.Dtype] = {int: "int", bool: "bool", float: "float"}
    kind = kinds.get(dtype) or (dtype if dtype in kinds.values() else None)
    if kind is None:
        raise MaskError("dtype of a table is int, bool or float", expression=f"{name}: {dtype!r}")
    return TableHandle(n.Table(name, ndim, bool(sorted), kind))


def minimum(x: Operand, y: Operand) -> Expr:
    """The smaller of two numbers."""
    return arith("min", x, y)


def maximum(x: Operand, y: Operand) -> Expr:
    """The larger of two numbers."""
    return arith("max", x, y)


def absolute(x: Operand) -> Expr:
    """Absolute value."""
    return Expr(n.Call("abs", as_number(x)))


def where(cond: Operand, x: Operand, y: Operand) -> Expr:
    """``x`` where ``cond`` holds, else ``y``; both numbers or both masks."""
    c, a, z = as_bool(cond), node_of(x), node_of(y)
    kinds = {n.dtype_of(a), n.dtype_of(z)}
    if kinds == {"bool"}:  # masks have one form of choice
        return Expr(n.Logic("|", n.Logic("&", c, as_bool(x)), n.Logic("&", n.Not(c), as_bool(y))))
    if "bool" in kinds:
        raise MaskError("where() mixes a mask with a number", expression=f"where({cond}, {x}, {y})")
    return Expr(n.Where(c, as_number(x), as_number(y)))


def tanh(x: Operand) -> Expr:
    """Hyperbolic tangent, float32 (score expressions)."""
    return Expr(n.Call("tanh", as_number(x)))


def exp(x: Operand) -> Expr:
    """Exponential, float32 (score expressions)."""
    return Expr(n.Call("exp", as_number(x)))


def log(x: Operand) -> Expr:
    """Natural logarithm, float32 (score expressions)."""
    return Expr(n.Call("log", as_number(x)))


def sigmoid(x: Operand) -> Expr:
    """1 / (1 + exp(-x)), float32 (score expressions)."""
    return Expr(n.Call("sigmoid", as_number(x)))


def softcap(x: Operand, cap: float) -> Expr:
    """``cap * tanh(x / cap)``: keeps logits within (-cap, cap), as in Gemma 2.

    >>> str(softcap(s, 30.0))
    '30.0 * tanh(s / 30.0)'
    """
    if not cap > 0:
        raise MaskError("softcap needs a positive cap", expression=f"softcap({x}, {cap})")
    return float(cap) * tanh(as_expr(x) / float(cap))


def as_expr(value: Operand) -> Expr:
    """An operand as a handle."""
    return value if isinstance(value, Expr) else Expr(node_of(value))


def by_head(kinds: Sequence[int] | TableHandle, masks: Sequence[Expr]) -> Expr:
    """Head ``h`` uses mask number ``kinds[h]``.

    Args:
        kinds: one mask number per query head, as a Python list or a 1-D integer table.
        masks: the masks chosen from.

    >>> str(by_head([0, 1], [k <= q, k < 4]))
    'by_head([0, 1], [k <= q, k < 4])'
    """
    members = tuple(as_bool(m) for m in masks)
    if not members:
        raise MaskError("by_head needs at least one mask", expression="by_head(kinds, [])")
    if isinstance(kinds, TableHandle):
        if kinds.table.ndim != 1 or kinds.table.dtype != "int":
            raise MaskError("by_head needs a 1-D integer table of kinds", expression=kinds)
        return Expr(n.ByHead(kinds.table, members))
    chosen = tuple(kinds)
    bad = [c for c in chosen if isinstance(c, bool) or not 0 <= int(c) < len(members)]
    if bad or not chosen:
        raise MaskError(
            f"by_head: kinds must be numbers of the {len(members)} masks, one a head",
            expression=f"kinds={list(chosen)}",
        )
    return Expr(n.ByHead(tuple(int(c) for c in chosen), members))


def mask(function: Callable[..., Expr]) -> Callable[..., Expr]:
    """Turn ``def f(q, k, *, sink=64): return ...`` into a factory of masks.

    Parameters named like an index symbol receive it; the others are arguments of the factory.

    >>> @mask
    ... def a_shape(q, k, *, sink=64, window=1024):
    ...     return (k <= q) & ((k < sink) | (q - k < window))
    >>> str(a_shape(sink=4))
    '(k <= q) & ((k < 4) | (q - k < 1024))'
    """
    own = [p for p in inspect.signature(function).parameters if p not in INDEX_SYMBOLS]
    given = {
        p: INDEX_SYMBOLS[p] for p in inspect.signature(function).parameters if p in INDEX_SYMBOLS
    }

    @functools.wraps(function)
    def factory(**arguments: Any) -> Expr:
        unknown = sorted(set(arguments) - set(own))
        if unknown:
            raise MaskError(
                f"{function.__name__}() has no argument {unknown[0]!r}",
                fix=f"it takes {', '.join(own) or 'none'}",
            )
        result = function(**given, **arguments)
        return Expr(as_bool(result))

    vars(factory)["__signature__"] = inspect.signature(function).replace(
        parameters=[p for name, p in inspect.signature(function).parameters.items() if name in own]
    )
    return factory
