"""Make a failing case small: a smaller mask, shorter lengths, plainer tables, fewer heads."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from maskwright.dsl import nodes as n
from maskwright.dsl.errors import MaskwrightError
from maskwright.dsl.expr import Expr
from maskwright.dsl.parser import parse
from maskwright.runtime.fuzz_case import Case
from maskwright.runtime.fuzz_checks import Problem

Examine = Callable[[Case], Problem | None]
SECONDS = 60.0


def shrink(
    case: Case, problem: Problem, examine: Examine, seconds: float = SECONDS
) -> tuple[Case, Problem]:
    """The smallest case found that shows a problem of the same kind, and that problem.

    Args:
        case: a case that fails.
        problem: what ``examine`` says of it.
        examine: the check.
        seconds: when to stop.
    """
    stop = time.monotonic() + seconds
    better: tuple[Case, Problem] | None = (case, problem)
    while better is not None and time.monotonic() < stop:
        case, problem = better
        better = _step(case, problem, examine, stop)
    return case, problem


def _step(
    case: Case, problem: Problem, examine: Examine, stop: float
) -> tuple[Case, Problem] | None:
    """The first simpler case that still fails alike."""
    for simpler in candidates(case):
        if time.monotonic() > stop:
            return None
        if not simpler.valid():
            continue
        found = examine(simpler)
        if found is not None and found.kind == problem.kind:
            return simpler, found
    return None


def candidates(case: Case) -> Iterator[Case]:
    """Simpler cases, the boldest steps first; some are not valid."""
    yield from _masks(case)
    yield from _sizes(case)
    yield from _options(case)
    yield from _values(case)


# -- the mask -------------------------------------------------------------------------------------
def _masks(case: Case) -> Iterator[Case]:
    mask = case.node
    for node in sorted(n.walk(mask), key=lambda x: -len(n.walk(x))):
        for other in simpler_nodes(node, case.bindings):
            text = _accepted(n.substitute(mask, {node: other}))
            if text is not None and _weight(text) < _weight(case.mask):
                yield with_mask(case, text)


def _weight(text: str) -> tuple[int, int, str]:
    """Order of masks: parts, then length."""
    return len(n.walk(parse(text).node)), len(text), text


def _accepted(node: n.Node) -> str | None:
    """Text of a mask that the language accepts."""
    text = str(Expr(node))
    try:
        return text if parse(text).dtype == "bool" else None
    except MaskwrightError:
        return None


def with_mask(case: Case, text: str) -> Case:
    """The case with another mask, without the values that it no longer needs."""
    node = parse(text).node
    needed = {p.name for p in n.params(node)} | {t.name for t in n.tables(node)}
    values = {name: value for name, value in case.bindings.items() if name in needed}
    return replace(case, mask=text, bindings=values)


def simpler_nodes(node: n.Node, values: dict[str, Any]) -> Iterator[n.Node]:
    """What may stand for a node: constants, its operands, plainer forms."""
    kind = n.dtype_of(node)
    match node:
        case n.Const(bool()):
            return
        case n.Const(int(value)):
            yield from (n.Const(v) for v in (0, 1, 2, value // 2, value - 1) if 0 <= v < value)
            return
        case n.Param(name):
            yield n.Const(int(values.get(name, 1)))
            yield n.Param(name)
        case n.Read(table, index) if len(index) < table.ndim:
            return  # a list
        case n.Compare("<=" | ">=" | ">" | "!=" as op, a, b):
            yield n.Compare({"<=": "<", ">=": ">", ">": "<", "!=": "=="}[op], a, b)  # type: ignore[arg-type]
    if kind == "bool":
        yield from (n.Const(value=True), n.Const(value=False))
    else:
        yield from (n.Const(0), n.Const(1))
    for part in n.children(node):
        row = isinstance(part, n.Read) and len(part.index) < part.table.ndim
        if n.dtype_of(part) == kind and not row and part is not node:
            yield part


# -- the sizes ------------------------------------------------------------------------------------
def _sizes(case: Case) -> Iterator[Case]:
    if case.batch > 1:
        yield replace(case, batch=1)
    for heads, kv_heads in ((1, 1), (2, 1), (2, 2)):
        if heads < case.heads or (heads == case.heads and kv_heads < case.kv_heads):
            yield _with_heads(case, heads, kv_heads)
    for length in _smaller(case.q_len):
        yield replace(case, q_len=length)
        if case.q_len == case.kv_len:
            yield _with_keys(replace(case, q_len=length), length)
    for length in _smaller(case.kv_len):
        yield _with_keys(case, length)
    if case.q_offset is not None:
        yield replace(case, q_offset=None)
        yield from (replace(case, q_offset=x) for x in (0, case.q_offset // 2))


def _smaller(value: int, least: int = 1) -> list[int]:
    tried = (least, value // 4, value // 2, value - 16, value - 4, value - 1)
    return sorted({v for v in tried if least <= v < value})


def _with_heads(case: Case, heads: int, kv_heads: int) -> Case:
    chosen: dict[n.Node, n.Node] = {
        x: n.ByHead(x.kinds[:heads], x.masks)
        for x in n.walk(case.node)
        if isinstance(x, n.ByHead) and isinstance(x.kinds, tuple)
    }
    mask = n.substitute(case.node, chosen)
    return replace(case, mask=str(Expr(mask)), heads=heads, kv_heads=kv_heads)


def _with_keys(case: Case, kv_len: int) -> Case:
    """Fewer keys; tables along them get shorter."""
    values = {
        name: value[..., :kv_len] if np.ndim(value) and value.shape[-1] == case.kv_len else value
        for name, value in case.bindings.items()
    }
    return replace(case, kv_len=kv_len, bindings=values)


# -- the rest -------------------------------------------------------------------------------------
def _options(case: Case) -> Iterator[Case]:
    plain = {
        "gradients": False,
        "score": None,
        "sinks": False,
        "loads": "pointer",
        "value_dim": None,
        "tile": None,
        "head_dim": 16,
        "dtype": "float32",
    }
    for name, value in plain.items():
        if getattr(case, name) != value:
            yield replace(case, **{name: value})  # type: ignore[arg-type]


def _values(case: Case) -> Iterator[Case]:
    for name, value in case.bindings.items():
        for simpler in _simpler_value(value):
            yield replace(case, bindings={**case.bindings, name: simpler})


def _simpler_value(value: Any) -> Iterator[Any]:
    if np.ndim(value) == 0:
        yield from (v for v in (0, 1, value // 2) if abs(v) < abs(value))
        return
    for axis, size in enumerate(value.shape):
        for length in (0, 1, size // 2, size - 1):
            if length < size:
                yield np.take(value, np.arange(length), axis)
                yield np.take(value, np.arange(size - length, size), axis)
    plain: tuple[Any, ...] = (np.zeros_like(value), np.minimum(value, 1), value // 2)
    for simpler in plain[: 1 if value.dtype == bool else 3]:
        if not np.array_equal(simpler, value) and np.abs(simpler).sum() <= np.abs(value).sum():
            yield simpler
