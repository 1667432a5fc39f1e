"""Checks of a call: tensors, head counts, and runtime values turned into kernel arguments."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskwright.codegen.api import check_head_dim
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.tables import read_by_position
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import BindingError
from maskwright.dsl.errors import LoweringError
from maskwright.dsl.errors import ShapeError
from maskwright.dsl.evaluate import check_bindings
from maskwright.dsl.evaluate import check_declarations
from maskwright.dsl.evaluate import check_param
from maskwright.dsl.evaluate import not_an_array
from maskwright.dsl.expr import Expr

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
_KINDS: dict[str, Sequence[torch.dtype]] = {
    "int": (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8),
    "bool": (torch.bool,),
    "float": (torch.float32, torch.float16, torch.bfloat16, torch.float64),
}
_STORED = {"int": torch.int32, "bool": torch.uint8, "float": torch.float32}


@dataclass(frozen=True)
class Shapes:
    """Sizes of a call."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    q_offset: int

    @property
    def positions_inside(self) -> bool:
        """All query positions lie in [0, kv_len)."""
        return self.q_offset >= 0 and self.q_offset + self.q_len <= self.kv_len


def check_config(config: KernelConfig, shapes: Shapes, *, aligned: bool) -> None:
    """Refuse a Triton kernel that these tensors do not suit.

    Args:
        aligned: addresses and strides are multiples of 16 bytes, and nothing is broadcast.

    Raises:
        LoweringError: descriptor loads of other tensors, or heads of a tile that share no KV head.
    """
    if config.loads == "descriptor" and not aligned:
        raise LoweringError(
            "descriptor loads need 16-byte bases and strides, and nothing broadcast",
            expression=config,
            fix='use loads="pointer", make the tensors contiguous, or let the heuristic choose',
        )
    group = shapes.heads // shapes.kv_heads
    if group % config.heads:
        raise LoweringError(
            f"{config.heads} heads a tile do not divide a group of {group}",
            expression=config,
            fix="heads=1, or let the heuristic choose",
        )


def check_tensors(query: Tensor, key: Tensor, value: Tensor, q_offset: int | None) -> Shapes:
    """Sizes of the call.

    Raises:
        ShapeError: if ranks, dtypes, devices or sizes do not fit together.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor) or x.ndim != 4:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"{name} must be a tensor of shape (batch, heads, length, head_dim)",
                expression=f"{name}: {shape}",
            )
        if x.dtype not in DTYPES or x.dtype != query.dtype:
            raise ShapeError(
                "query, key and value need one dtype: float16, bfloat16 or float32",
                expression=f"{name}: {x.dtype}, query: {query.dtype}",
            )
        if x.device != query.device:
            raise ShapeError(f"{name} is on {x.device}, query on {query.device}")
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, value_dim = value.shape
    shown = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if key.shape[:3] != value.shape[:3] or key.shape[0] != batch or key.shape[3] != head_dim:
        raise ShapeError("batch, KV heads, lengths or head_dim differ", expression=shown)
    if not heads or not kv_heads or heads % kv_heads:
        raise ShapeError(
            f"{heads} query heads do not divide over {kv_heads} KV heads", expression=shown
        )
    check_head_dim(head_dim)
    check_head_dim(value_dim)
    offset = kv_len - q_len if q_offset is None else q_offset
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise ShapeError(f"q_offset is a Python int, not {type(offset).__name__}")
    return Shapes(batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim, offset)


def check_sinks(sinks: Tensor | None, query: Tensor) -> None:
    """One float per query head, on the query's device."""
    if sinks is None:
        return
    heads = query.shape[1]
    if not isinstance(sinks, Tensor) or sinks.shape != (heads,) or not sinks.is_floating_point():
        raise ShapeError(f"sinks is a float tensor of shape ({heads},), one logit a query head")
    if sinks.device != query.device:
        raise ShapeError(f"sinks is on {sinks.device}, query on {query.device}")


@dataclass(frozen=True)
class Binder:
    """Turns the runtime values of one mask and score into kernel arguments."""

    nodes: tuple[n.Node, ...]
    params: tuple[n.Param, ...]
    tables: tuple[n.Table, ...]
    names: frozenset[str]
    head_counts: frozenset[int]
    by_position: bool

    @staticmethod
    def of(nodes: tuple[n.Node, ...]) -> Binder:
        """The binder of a mask node and, if any, a score node.

        Raises:
            MaskError, BindingError: a name is declared in two ways.
        """
        params = {p.name: p for node in nodes for p in n.params(node)}
        tables = {t.name: t for node in nodes for t in n.tables(node)}
        for name in params.keys() & tables.keys():
            raise BindingError(f'"{name}" is both a param and a table', fix="rename one")
        check_declarations(list(nodes), Expr(nodes[0]))
        counts = {
            len(x.kinds)
            for node in nodes
            for x in n.walk(node)
            if isinstance(x, n.ByHead) and isinstance(x.kinds, tuple)
        }
        by_position = all(map(read_by_position, nodes))
        values = (tuple(params.values()), tuple(tables.values()))
        names = frozenset((*params, *tables))
        return Binder(nodes, *values, names, frozenset(counts), by_position)

    def bind(self, bindings: Mapping[str, Any], device: torch.device, heads: int) -> dict[str, Any]:
        """Checked values by name: ints for params, int32/uint8/float32 tensors for tables.

        Raises:
            BindingError: a value is missing, unknown, or of the wrong type, rank or device.
            ShapeError: ``by_head`` names another number of heads.
        """
        if not self.params and not self.tables and not bindings and not self.head_counts:
            return {}
        if bindings.keys() != self.names:
            check_bindings(list(self.nodes), bindings, Expr(self.nodes[0]))
        for count in self.head_counts - {heads}:
            raise ShapeError(
                f"by_head names {count} heads, the call has {heads}",
                expression=Expr(self.nodes[0]),
                fix="give one kind a query head",
            )
        shown = Expr(self.nodes[0])
        values: dict[str, Any] = {
            p.name: check_param(p, bindings[p.name], shown) for p in self.params
        }
        for t in self.tables:
            values[t.name] = _table(t, bindings[t.name], device, shown)
        return values

    def check_kinds(self, bindings: Mapping[str, Any], device: torch.device) -> None:
        """What can be checked without any value: names, and the rank, kind and device of tables.

        Raises:
            BindingError: as ``bind``.
        """
        shown = Expr(self.nodes[0])
        check_bindings(list(self.nodes), bindings, shown)
        for t in self.tables:
            _check_table(t, bindings[t.name], device, shown)

    def sorted_inside(self, values: Mapping[str, Any], kv_len: int) -> bool:
        """Sorted tables reach to kv_len and are read at positions only."""
        long_enough = (values[t.name].shape[-1] >= kv_len for t in self.tables if t.sorted)
        return self.by_position and all(long_enough)


def _table(t: n.Table, given: Any, device: torch.device, shown: object) -> Tensor:
    value = given if isinstance(given, Tensor) else _as_tensor(t, given, device, shown)
    _check_table(t, value, device, shown)
    if value.numel() >= 2**31:
        what = f'table "{t.name}" has {value.numel()} elements'
        raise BindingError(what, expression=shown, fix="2**31 is the limit")
    return value.to(_STORED[t.dtype])


def _check_table(t: n.Table, value: Any, device: torch.device, shown: object) -> None:
    if not isinstance(value, Tensor):
        what, fix = f"is {type(value).__name__}", "give a tensor"
    elif value.device != device:
        what, fix = f"is on {value.device}, the query is on {device}", f'{t.name}.to("{device}")'
    elif value.ndim != t.ndim:
        what = f"is declared with {t.ndim} dimension(s), the tensor has shape {tuple(value.shape)}"
        fix = f"give it {t.ndim} dimension(s)"
    elif value.dtype not in _KINDS[t.dtype]:
        what = f"is declared {t.dtype}, the tensor is {value.dtype}"
        fix = f"use {', '.join(str(d) for d in _KINDS[t.dtype][:2])}"
    else:
        return
    raise BindingError(f'table "{t.name}" {what}', expression=shown, fix=fix)


def _as_tensor(t: n.Table, given: Any, device: torch.device, shown: object) -> Tensor:
    """Lists and arrays are fine on the CPU; a GPU needs tensors."""
    if device.type != "cpu":
        raise BindingError(
            f'table "{t.name}" must be a tensor on {device}, not {type(given).__name__}',
            expression=shown,
            fix=f"{t.name}=torch.as_tensor(..., device={str(device)!r})",
        )
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise not_an_array(t, given, shown) from error
