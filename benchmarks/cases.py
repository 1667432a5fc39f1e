"""What is measured: each case is one mask, once as a maskwright expression and once for the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import torch

import maskwright as mw
from maskwright import h
from maskwright import k
from maskwright import q

FlexMod: TypeAlias = Callable[[Any, Any, Any, Any], Any]

WINDOW = 1024
SINK, SINK_WINDOW = 128, 2048
BLOCK, STRIDE = 64, 16
DOCUMENT = 4096


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; queries and keys have the same length."""

    batch: int = 1
    heads: int = 32
    kv_heads: int = 8
    seq: int = 8192
    head_dim: int = 128
    dtype: str = "bfloat16"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found


@dataclass(frozen=True)
class Case:
    """One mask at one size.

    Attributes:
        name: mask name, the key of ``CASES``.
        mask: the maskwright expression.
        flex_mod: the same mask as a function of (b, h, q, k) on tensors; None attends everywhere.
        per_head: True if the mask differs between query heads.
        bindings: runtime tensors of ``mask``.
        training: True if gradients are asked for.
    """

    name: str
    mask: mw.Expr
    flex_mod: FlexMod | None
    shape: Shape
    per_head: bool = False
    bindings: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    training: bool = False

    @property
    def label(self) -> str:
        """Name and length, for progress lines."""
        return f"{self.name} S={self.shape.seq}"


class Tensors(NamedTuple):
    """Inputs of a call, each (B, H, S, D)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def make_tensors(shape: Shape, device: str, seed: int = 0) -> Tensors:
    """Random normal inputs, the same for every contestant of a case."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(heads: int) -> torch.Tensor:
        size = (shape.batch, heads, shape.seq, shape.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=shape.torch_dtype)

    return Tensors(draw(shape.heads), draw(shape.kv_heads), draw(shape.kv_heads))


def full(shape: Shape, device: str) -> Case:
    """Every pair."""
    return Case("full", mw.parse("True"), None, shape)


def causal(shape: Shape, device: str) -> Case:
    """A query sees itself and all before it."""
    return Case("causal", k <= q, lambda b, h, q, k: k <= q, shape)


def window(shape: Shape, device: str) -> Case:
    """Causal, the last ``WINDOW`` keys including the current one."""
    mask = (k <= q) & (q - k < WINDOW)
    return Case("window", mask, lambda b, h, q, k: (k <= q) & (q - k < WINDOW), shape)


def a_shape(shape: Shape, device: str) -> Case:
    """Causal, the first ``SINK`` keys and the last ``SINK_WINDOW``."""
    mask = (k <= q) & ((k < SINK) | (q - k < SINK_WINDOW))

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & ((k < SINK) | (q - k < SINK_WINDOW))

    return Case("a_shape", mask, mod, shape)


def strided(shape: Shape, device: str) -> Case:
    """A local window, and every ``STRIDE``-th block of keys, shifted by the query head."""
    mask = (k <= q) & ((q - k < WINDOW) | ((k // BLOCK + h) % STRIDE == 0))

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & ((q - k < WINDOW) | ((k // BLOCK + h) % STRIDE == 0))

    return Case("strided", mask, mod, shape, per_head=True)


def document_ids(seq: int, mean: int = DOCUMENT, seed: int = 2) -> torch.Tensor:
    """(seq,) int32, non-decreasing: documents 0, 1, ... cut at random places, at least two."""
    count = max(seq // mean, min(2, seq))
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randperm(seq - 1, generator=generator)[: count - 1] + 1
    starts = torch.zeros(seq, dtype=torch.int32)
    starts[cuts] = 1
    return starts.cumsum(0, dtype=torch.int32)


def document(shape: Shape, device: str, mean: int = DOCUMENT) -> Case:
    """Causal inside contiguous documents of ``mean`` tokens on average."""
    doc_id = mw.table("doc_id", ndim=2, sorted=True)
    mask = (k <= q) & (doc_id[mw.b, q] == doc_id[mw.b, k])
    ids = document_ids(shape.seq, mean).to(device)

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (ids[q] == ids[k])

    return Case("document", mask, mod, shape, bindings={"doc_id": _rows(ids, shape)})


def anchor_document(shape: Shape, device: str, mean: int = DOCUMENT) -> Case:
    """Documents that also see the anchor: one leading token, which is document 0."""
    doc_id = mw.table("doc_id", ndim=2, sorted=True)
    same = doc_id[mw.b, q] == doc_id[mw.b, k]
    mask = (k <= q) & (same | (doc_id[mw.b, k] == 0))
    ids = document_ids(shape.seq, mean) + 1
    ids[0] = 0
    ids = ids.to(device)

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & ((ids[q] == ids[k]) | (ids[k] == 0))

    return Case("anchor_document", mask, mod, shape, bindings={"doc_id": _rows(ids, shape)})


def _rows(ids: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The ids as a (B, S) table, the same in every batch entry."""
    return ids[None].repeat(shape.batch, 1)


CASES: dict[str, Callable[[Shape, str], Case]] = {
    "full": full,
    "causal": causal,
    "window": window,
    "a_shape": a_shape,
    "strided": strided,
    "document": document,
    "anchor_document": anchor_document,
}


def build(name: str, shape: Shape, device: str = "cuda") -> Case:
    """The case of that name; its runtime tensors lie on ``device``."""
    return CASES[name](shape, device)
