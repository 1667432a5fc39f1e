"""Exact numpy evaluation of any node: the definition of the language, and every test's oracle."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from functools import partial
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskwright.dsl import nodes as n
from maskwright.dsl.errors import BindingError
from maskwright.dsl.errors import MaskError
from maskwright.dsl.errors import ShapeError
from maskwright.dsl.expr import Expr
from maskwright.dsl.text import to_text

Array: TypeAlias = npt.NDArray[Any]
Env: TypeAlias = Mapping[str, Any]

PARAM_LIMIT = 2**29  # a param, twice over or with a position, still fits int32
_NOWHERE = np.int64(-(2**62))  # below all entries, and below all values by more than a run
_COMPARE = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_LOGIC = {"&": np.logical_and, "|": np.logical_or, "^": np.logical_xor}
_ARITH = {"+": np.add, "-": np.subtract, "*": np.multiply, "min": np.minimum, "max": np.maximum}


def evaluate(node: n.Node, env: Env) -> Array:
    """Value of ``node`` with every symbol, param and table taken by name from ``env``.

    Symbols may be bound to arrays that broadcast against each other. Integers are int64.
    """
    return _value(env, {}, node)


def _value(env: Env, memo: dict[n.Node, Array], node: n.Node) -> Array:
    """Value of a node, once; no function here holds another, so nothing waits for the collector."""
    if node not in memo:
        memo[node] = _step(node, env, partial(_value, env, memo))
    return memo[node]


def _step(x: n.Node, env: Env, value: Callable[[n.Node], Array]) -> Array:
    """Value of one node over those of its operands."""
    match x:
        case n.Const(v):
            return np.asarray(v)
        case n.Sym(name) | n.Param(name):
            return np.asarray(env[name])
        case n.Arith(op, a, b):
            return _arith(op, value(a), value(b))
        case n.Compare(op, a, b):
            return _COMPARE[op](value(a), value(b))
        case n.Logic(op, a, b):
            return _LOGIC[op](value(a), value(b))
        case n.Not(a):
            return np.logical_not(value(a))
        case n.Where(c, a, b):
            return np.where(value(c), value(a), value(b))
        case n.Call(name, a):
            return _call(name, value(a))
        case n.ByHead(kinds, masks):
            return _by_head(_kinds(kinds, env), np.asarray(env["h"]), [value(m) for m in masks])
        case n.Read(table, index):
            return _read(_array(env, table), [value(i) for i in index], _outside(table))
        case n.Member(v, row, run):
            return _member(value(v), _array(env, row.table), [value(i) for i in row.index], run)
        case n.Search(table, prefix, v):
            rows = [value(i) for i in prefix]
            return _search(_array(env, table), rows, value(v), int(env["kv_len"]))
        case n.Extent(table, axis):
            return np.asarray(_array(env, table).shape[axis])
    msg = f"cannot evaluate {type(x).__name__}"
    raise TypeError(msg)


def _array(env: Env, table: n.Table) -> Array:
    return np.asarray(env[table.name])


def _outside(table: n.Table) -> int | bool | float:
    return {"int": -1, "bool": False, "float": 0.0}[table.dtype]


def _arith(op: str, a: Array, b: Array) -> Array:
    if op == "/":
        return np.asarray(a, dtype=np.float64) / b
    if op in _ARITH:
        return np.asarray(_ARITH[op](a, b))
    # A runtime divisor of 0 yields 0 for both `//` and `%`.
    safe = np.where(b == 0, 1, b)
    result = np.floor_divide(a, safe) if op == "//" else np.remainder(a, safe)
    return np.where(b == 0, 0, result)


def _call(name: str, a: Array) -> Array:
    match name:
        case "abs":
            return np.abs(a)
        case "sigmoid":
            return np.asarray(1.0 / (1.0 + np.exp(-a)))
    return np.asarray({"exp": np.exp, "log": np.log, "tanh": np.tanh}[name](a))


def _kinds(kinds: tuple[int, ...] | n.Table, env: Env) -> Array:
    return _array(env, kinds) if isinstance(kinds, n.Table) else np.asarray(kinds)


def _by_head(kinds: Array, head: Array, masks: list[Array]) -> Array:
    kind = _read(kinds, [head], -1)
    result = np.asarray(False)
    for i, mask in enumerate(masks):
        result = result | ((kind == i) & mask)
    return result


def _inside(array: Array, index: list[Array]) -> tuple[Array, tuple[Array, ...]]:
    """Where the index lies inside the leading axes, and the index clipped to them."""
    inside = np.asarray(True)
    clipped = []
    for size, i in zip(array.shape, index, strict=False):
        inside = inside & (i >= 0) & (i < size)
        clipped.append(np.clip(i, 0, max(size - 1, 0)).astype(np.int64))
    return inside, tuple(np.broadcast_arrays(*clipped)) if clipped else ()


def _read(array: Array, index: list[Array], outside: float) -> Array:
    if array.size == 0:
        return np.broadcast_to(np.asarray(outside), np.broadcast_shapes(*(i.shape for i in index)))
    inside, clipped = _inside(array, index)
    return np.asarray(np.where(inside, array[clipped], np.asarray(outside)))


def _member(value: Array, array: Array, prefix: list[Array], run: int) -> Array:
    """Membership in each value's row, by binary search in the sorted row."""
    inside, clipped = _inside(array, prefix)
    shape = np.broadcast_shapes(value.shape, *(i.shape for i in prefix))
    if 0 in array.shape:
        return np.zeros(shape, bool)
    # The last entry up to a value is what it may belong to; padding belongs to nothing.
    entries = np.sort(np.where(array == -1, _NOWHERE, array), axis=-1)
    place = _search(entries, prefix, np.broadcast_to(value, shape) + 1, array.shape[-1])
    index = (*clipped, np.maximum(place - 1, 0))
    last = entries[index]
    return np.broadcast_to(inside & (place > 0) & (last > value - run), shape)


def _search(array: Array, prefix: list[Array], value: Array, kv_len: int) -> Array:
    """Per element a binary search in its row; a row outside the tensor reads -1 everywhere."""
    length = min(array.shape[-1], kv_len)
    inside, clipped = _inside(array, prefix)
    shape = np.broadcast_shapes(value.shape, inside.shape)
    low = np.zeros(shape, np.int64)
    high = np.full(shape, length, np.int64)
    for _ in range(length.bit_length()):
        mid = (low + high) // 2
        open_ = low < high
        index = (*clipped, np.minimum(mid, length - 1))
        entry = np.where(inside, array[index], -1)
        before = entry < value
        low = np.where(open_ & before, mid + 1, low)
        high = np.where(open_ & ~before, mid, high)
    return low


def mask_node(mask: object) -> n.Node:
    """Node of a user's mask; None is the full mask.

    Raises:
        MaskError: if it is no mask (or a factory was given instead of its result).
    """
    if mask is None:
        return n.Const(value=True)
    if isinstance(mask, bool):
        return n.Const(mask)
    if not isinstance(mask, Expr) or mask.dtype != "bool":
        hint = "call the factory: my_mask()" if callable(mask) else "use a comparison of q and k"
        raise MaskError("this is not a mask expression", expression=mask, fix=hint)
    node = mask.node
    if n.SCORE in n.symbols(node):
        raise MaskError("a mask cannot depend on the score", expression=mask, fix="use score=")
    floats = [t.name for t in n.tables(node) if t.dtype == "float"]
    if floats:
        raise MaskError(
            f'a mask cannot read float table "{floats[0]}"', expression=mask, fix="use score="
        )
    return node


def check_bindings(nodes: list[n.Node], bindings: Mapping[str, Any], shown: object) -> None:
    """Every param and table is given, nothing else is.

    Raises:
        BindingError: naming the missing or unknown value.
    """
    check_declarations(nodes, shown)
    needed = {p.name for x in nodes for p in n.params(x)}
    needed |= {t.name for x in nodes for t in n.tables(x)}
    missing = sorted(needed - set(bindings))
    if missing:
        raise BindingError(
            f'runtime value "{missing[0]}" is missing',
            expression=shown,
            fix=f"pass it by name: {missing[0]}=...",
        )
    unknown = sorted(set(bindings) - needed)
    if unknown:
        names = ", ".join(sorted(needed)) or "none"
        raise BindingError(
            f'unknown argument "{unknown[0]}"',
            expression=shown,
            fix=f"the runtime values of this mask are: {names}",
        )


def check_declarations(nodes: list[n.Node], shown: object) -> None:
    """Every runtime value is declared in one way only.

    Raises:
        MaskError: naming the value with two declarations.
    """
    seen: dict[str, str] = {}
    for x in (y for node in nodes for y in n.walk(node)):
        match x:
            case n.Read(table, _) | n.ByHead(n.Table() as table, _):
                name, declared = table.name, str(table)
            case n.Param(name, _, _):
                declared = to_text(x)
            case _:
                continue
        if seen.setdefault(name, declared) != declared:
            raise MaskError(
                f'"{name}" is declared in two ways in one expression',
                expression=shown,
                fix="declare it once, or use two names",
            )


def environment(
    node: n.Node,
    q_len: int,
    kv_len: int,
    heads: int,
    kv_heads: int,
    bindings: Mapping[str, Any],
) -> dict[str, Any]:
    """Scalars and checked runtime values by name, for ``evaluate``."""
    env: dict[str, Any] = {"q_len": np.int64(q_len), "kv_len": np.int64(kv_len)}
    shown = Expr(node)
    for p in n.params(node):
        env[p.name] = check_param(p, bindings[p.name], shown)
    for t in n.tables(node):
        env[t.name] = check_table(t, bindings[t.name], shown)
    for x in n.walk(node):
        if isinstance(x, n.ByHead) and isinstance(x.kinds, tuple) and len(x.kinds) != heads:
            raise ShapeError(
                f"by_head names {len(x.kinds)} heads, the call has {heads}",
                expression=Expr(node),
                fix="give one kind a query head",
            )
    return env


def check_sizes(
    q_len: int, kv_len: int, batch: int, heads: int, kv_heads: int, q_offset: int | None
) -> None:
    """Sizes are counts, query heads divide over KV heads, and q_offset is an integer.

    Raises:
        ShapeError: otherwise.
    """
    sizes = {"q_len": q_len, "kv_len": kv_len, "batch": batch, "heads": heads, "kv_heads": kv_heads}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise ShapeError(
                f"{name} must be a non-negative integer, not {value!r}", fix=f"{name}=1024, say"
            )
    if heads and (not kv_heads or heads % kv_heads):
        raise ShapeError(
            f"{heads} query heads do not divide over {kv_heads} KV heads",
            fix="heads is a multiple of kv_heads",
        )
    if q_offset is not None and not isinstance(q_offset, (int, np.integer)):
        raise ShapeError(f"q_offset is an integer, not {q_offset!r}", fix="the position of row 0")


def check_param(p: n.Param, value: Any, shown: object = None) -> int:
    """A param's value as a Python int, checked against int32 and its promised range."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise BindingError(
            f'param "{p.name}" needs a Python int, not {type(value).__name__}',
            expression=shown,
            fix="use mw.table for tensors",
        )
    low = -PARAM_LIMIT if p.min is None else p.min
    high = PARAM_LIMIT if p.max is None else p.max
    if abs(int(value)) > PARAM_LIMIT:
        raise BindingError(
            f'param "{p.name}" = {value} is beyond +-2**29: sums with it would leave int32',
            expression=shown,
            fix="for an unbounded window pass the sequence length",
        )
    if not low <= value <= high:
        raise BindingError(
            f'param "{p.name}" = {value} is outside its promised range [{low}, {high}]',
            expression=shown,
            fix="pass a value inside, or declare another range",
        )
    return int(value)


def check_table(t: n.Table, value: Any, shown: object = None) -> Array:
    """A table's value as a numpy array of the declared rank and kind."""
    try:
        array = np.asarray(value.detach().cpu()) if hasattr(value, "detach") else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise not_an_array(t, value, shown) from error
    if array.ndim != t.ndim:
        raise BindingError(
            f'table "{t.name}" is declared with {t.ndim} dimension(s), the tensor has {array.ndim}',
            expression=shown,
            fix=f"its shape is {array.shape}; give it {t.ndim} dimension(s)",
        )
    kinds = {"int": "iu", "bool": "b", "float": "f"}[t.dtype]
    if array.dtype.kind not in kinds:
        raise BindingError(
            f'table "{t.name}" is declared {t.dtype}, the tensor is {array.dtype}',
            expression=shown,
            fix=f"give a tensor of {t.dtype}",
        )
    return array.astype(np.int64) if t.dtype == "int" else array


def not_an_array(t: n.Table, value: Any, shown: object) -> BindingError:
    """The error for a table's value that is no tensor at all."""
    return BindingError(
        f'table "{t.name}" cannot be made of {type(value).__name__} {value!r:.60}',
        expression=shown,
        fix=f"give a tensor or an array of {t.ndim} dimension(s)",
    )


def to_dense(
    mask: object,
    q_len: int,
    kv_len: int | None = None,
    *,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int | None = None,
    q_offset: int | None = None,
    **bindings: Any,
) -> npt.NDArray[np.bool_]:
    """The mask, written out: the definition of what attention computes.

    Args:
        mask: a mask expression; None is the full mask.
        q_len, kv_len: lengths (kv_len defaults to q_len).
        batch, heads, kv_heads: counts (kv_heads defaults to heads).
        q_offset: position of query row 0; defaults to kv_len - q_len (bottom-right).
        bindings: params (int) and tables (arrays or tensors) by name.

    Returns:
        numpy bool of shape (batch, heads, q_len, kv_len); True means: attend.

    >>> from maskwright.dsl.symbols import k, q
    >>> to_dense(k <= q, 2, 3)[0, 0].astype(int).tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    node = mask_node(mask)
    kv_len = q_len if kv_len is None else kv_len
    kv_heads = heads if kv_heads is None else kv_heads
    check_sizes(q_len, kv_len, batch, heads, kv_heads, q_offset)
    check_bindings([node], bindings, Expr(node))
    env = environment(node, q_len, kv_len, heads, kv_heads, bindings)
    offset = kv_len - q_len if q_offset is None else q_offset
    env |= grid(np.arange(q_len) + offset, np.arange(kv_len), batch, heads, kv_heads)
    return np.broadcast_to(evaluate(node, env), (batch, heads, q_len, kv_len)).astype(bool)


def grid(rows: Array, keys: Array, batch: int, heads: int, kv_heads: int) -> dict[str, Array]:
    """Index symbols as arrays that broadcast to (batch, heads, rows, keys)."""
    head = np.arange(heads).reshape(1, -1, 1, 1)
    return {
        "q": rows.reshape(1, 1, -1, 1),
        "k": keys.reshape(1, 1, 1, -1),
        "h": head,
        "kv_head": head // max(heads // max(kv_heads, 1), 1),
        "b": np.arange(batch).reshape(-1, 1, 1, 1),
    }
