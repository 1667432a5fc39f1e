"""Evaluation of any node with torch: for the reference backend, on any device."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.dsl import nodes as n

_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "min": torch.minimum,
    "max": torch.maximum,
    "<": torch.lt,
    "<=": torch.le,
    ">": torch.gt,
    ">=": torch.ge,
    "==": torch.eq,
    "!=": torch.ne,
    "&": torch.logical_and,
    "|": torch.logical_or,
    "^": torch.logical_xor,
}
_NOWHERE = -(2**62)  # padding: below all values by more than a run
_CALLS = {
    "abs": torch.abs,
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def evaluate(node: n.Node, env: Mapping[str, Any], device: torch.device) -> Tensor:
    """Value of ``node``; symbols, params and tables by name in ``env``; integers are int64."""
    return _value(env, device, {}, node)


def _value(
    env: Mapping[str, Any], device: torch.device, memo: dict[n.Node, Tensor], node: n.Node
) -> Tensor:
    """Value of a node, once; no function here holds another, so nothing waits for the collector."""
    if node not in memo:
        memo[node] = _step(node, env, device, partial(_value, env, device, memo))
    return memo[node]


def _step(
    x: n.Node, env: Mapping[str, Any], device: torch.device, value: Callable[[n.Node], Tensor]
) -> Tensor:
    """Value of one node over those of its operands."""
    match x:
        case n.Const(v) | n.Sym(v) | n.Param(v):
            raw = v if isinstance(x, n.Const) else env[str(v)]
            return torch.as_tensor(raw, device=device)
        case n.Arith("//" | "%" as op, a, b):
            return _division(op, value(a), value(b))
        case n.Arith(op, a, b) | n.Compare(op, a, b) | n.Logic(op, a, b):
            return _OPS[op](value(a), value(b))
        case n.Not(a):
            return torch.logical_not(value(a))
        case n.Where(c, a, b):
            return torch.where(value(c), value(a), value(b))
        case n.Call(name, a):
            return _CALLS[name](value(a))
        case n.Read(table, index):
            return _read(table, env[table.name], [value(i) for i in index])
        case n.Member(v, row, run):
            return _member(value(v), env[row.table.name], [value(i) for i in row.index], run)
        case n.ByHead(kinds, masks):
            return _by_head(kinds, [value(m) for m in masks], env, device)
    msg = f"cannot evaluate {type(x).__name__}"
    raise TypeError(msg)


def _division(op: str, a: Tensor, b: Tensor) -> Tensor:
    safe = torch.where(b == 0, 1, b)
    result = a // safe if op == "//" else a % safe
    return torch.where(b == 0, 0, result)


def _broadcast(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    shape = np.broadcast_shapes(*(x.shape for x in tensors))
    return tuple(x.expand(shape) for x in tensors)


def _place(data: Tensor, index: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Where the index lies inside the leading axes, and the index clipped to them."""
    inside = torch.ones((), dtype=torch.bool, device=data.device)
    clipped = []
    for size, i in zip(data.shape, index, strict=False):
        inside = inside & (i >= 0) & (i < size)
        clipped.append(i.clamp(0, max(size - 1, 0)).long())
    return inside, _broadcast(clipped)


def _read(table: n.Table, data: Tensor, index: list[Tensor]) -> Tensor:
    outside = {"int": -1, "bool": False, "float": 0.0}[table.dtype]
    if data.numel() == 0:
        shape = np.broadcast_shapes(*(i.shape for i in index))
        dtype = {"int": torch.int64, "bool": torch.bool, "float": torch.float32}[table.dtype]
        return torch.full(shape, outside, dtype=dtype, device=data.device)
    inside, clipped = _place(data, index)
    found = data[clipped]
    found = found.long() if table.dtype == "int" else found
    found = found != 0 if table.dtype == "bool" else found
    return torch.where(
        inside, found, torch.as_tensor(outside, device=data.device, dtype=found.dtype)
    )


def add_to_read(total: Tensor, read: n.Read, env: Mapping[str, Any], amount: Tensor) -> None:
    """``total[index of the read] += amount``, summed where the index does not vary."""
    index = [evaluate(i, env, total.device) for i in read.index]
    inside, clipped = _place(total, index)
    place = torch.zeros_like(clipped[0])
    for size, i in zip(total.shape, clipped, strict=True):
        place = place * size + i
    if total.numel():
        summed = torch.where(inside, amount.sum_to_size(place.shape), 0.0)
        total.view(-1).index_add_(0, place.flatten(), summed.flatten().to(total.dtype))


def _entry(rows: Tensor, prefix: tuple[Tensor, ...], place: Tensor) -> Tensor:
    index = (*prefix, place)
    return rows[index]


def _member(value: Tensor, data: Tensor, prefix: list[Tensor], run: int) -> Tensor:
    """Binary search in the sorted rows: the last entry up to a value is what it may belong to."""
    inside, clipped = _place(data, prefix)
    length = data.shape[-1]
    if 0 in data.shape:
        return torch.zeros_like(value, dtype=torch.bool)
    entries = data.long().where(data != -1, _NOWHERE).sort(dim=-1).values
    last = length - 1
    shape = np.broadcast_shapes(value.shape, *(i.shape for i in prefix))
    low = torch.zeros(shape, dtype=torch.long, device=data.device)
    high = torch.full_like(low, length)
    for _ in range(length.bit_length() + 1):
        middle = (low + high) // 2
        entry = _entry(entries, clipped, middle.clamp(max=last))
        below = (low < high) & (entry <= value)
        high = torch.where((low < high) & (entry > value), middle, high)
        low = torch.where(below, middle + 1, low)
    found = _entry(entries, clipped, (low - 1).clamp(min=0)) > value - run
    return found & (low > 0) & inside


def _by_head(
    kinds: tuple[int, ...] | n.Table,
    masks: list[Tensor],
    env: Mapping[str, Any],
    device: torch.device,
) -> Tensor:
    data = env[kinds.name] if isinstance(kinds, n.Table) else torch.tensor(kinds, device=device)
    head = torch.as_tensor(env["h"], device=device)
    kind = _read(n.Table("kinds"), data, [head])
    result = torch.zeros((), dtype=torch.bool, device=device)
    for i, mask in enumerate(masks):
        result = result | ((kind == i) & mask)
    return result
