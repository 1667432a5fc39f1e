"""What a head may be given: a pattern with its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.dsl.expr import Expr
from maskwright.patterns.basic import causal
from maskwright.patterns.block import block_list
from maskwright.patterns.selectors.blocks import block_top_k
from maskwright.patterns.selectors.slash import vertical_slash as select_lists
from maskwright.patterns.slash import vertical_slash
from maskwright.patterns.window import a_shape

Lists: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class Causal:
    """Everything before: the head stays dense."""

    name: ClassVar[str] = "causal"

    def mask(self) -> Expr:
        """The pattern."""
        return causal()

    def lists(self, query: Tensor, key: Tensor) -> Lists:
        """Its runtime lists, for all heads."""
        return {}

    def keep(self, lists: Lists, head: int, position: Tensor, kv_len: int) -> Tensor:
        """(batch or 1, rows, Sk) bool: the keys of the queries at some positions."""
        return _distance(position, kv_len)[None] >= 0


@dataclass(frozen=True)
class AShape:
    """First keys and a window."""

    name: ClassVar[str] = "a_shape"
    sink: int
    window: int

    def mask(self) -> Expr:
        """The pattern."""
        return a_shape(self.sink, self.window)

    def lists(self, query: Tensor, key: Tensor) -> Lists:
        """No lists."""
        return {}

    def keep(self, lists: Lists, head: int, position: Tensor, kv_len: int) -> Tensor:
        """As for ``Causal``."""
        distance = _distance(position, kv_len)[None]
        first = torch.arange(kv_len, device=position.device) < self.sink
        return (distance >= 0) & ((distance < self.window) | first)


@dataclass(frozen=True)
class VerticalSlash:
    """Listed columns and diagonals, forced ones included."""

    name: ClassVar[str] = "vertical_slash"
    columns: int
    diagonals: int

    def mask(self) -> Expr:
        """The pattern; its sizes are those of the lists."""
        return vertical_slash()

    def lists(self, query: Tensor, key: Tensor) -> Lists:
        """Columns and diagonals."""
        return select_lists(query, key, self.columns, self.diagonals)

    def keep(self, lists: Lists, head: int, position: Tensor, kv_len: int) -> Tensor:
        """As for ``Causal``."""
        distance = _distance(position, kv_len)
        columns = _marked(lists["v_idx"][:, head], kv_len)
        diagonals = _marked(lists["s_idx"][:, head], kv_len)[:, distance.clamp(min=0)]
        return (distance >= 0) & (columns[:, None] | diagonals)


@dataclass(frozen=True)
class BlockList:
    """Blocks of keys for each block of queries."""

    name: ClassVar[str] = "block_list"
    count: int
    block: int = 64

    def mask(self) -> Expr:
        """The pattern."""
        return block_list(self.block, self.block)

    def lists(self, query: Tensor, key: Tensor) -> Lists:
        """Blocks."""
        return block_top_k(query, key, self.count, block_q=self.block, block_k=self.block)

    def keep(self, lists: Lists, head: int, position: Tensor, kv_len: int) -> Tensor:
        """As for ``Causal``."""
        blocks = lists["block_idx"][:, head, position // self.block]
        kept = _marked(blocks, -(-kv_len // self.block)).repeat_interleave(self.block, -1)
        return kept[..., :kv_len] & (_distance(position, kv_len) >= 0)


Candidate: TypeAlias = Causal | AShape | VerticalSlash | BlockList

KINDS: dict[str, type[Candidate]] = {x.name: x for x in (Causal, AShape, VerticalSlash, BlockList)}

# Those of MInference's search.
CANDIDATES: tuple[Candidate, ...] = (
    AShape(100, 800),
    VerticalSlash(30, 800),
    VerticalSlash(100, 750),
    VerticalSlash(500, 700),
    VerticalSlash(3500, 100),
    VerticalSlash(1000, 4096),
    VerticalSlash(1000, 6096),
    BlockList(100),
)


def _distance(position: Tensor, kv_len: int) -> Tensor:
    """(rows, Sk): how far back each key lies."""
    return position[:, None] - torch.arange(kv_len, device=position.device)


def _marked(index: Tensor, size: int) -> Tensor:
    """(..., size) bool: which numbers are listed."""
    found = torch.zeros((*index.shape[:-1], size + 1), dtype=torch.bool, device=index.device)
    place = torch.where(index < 0, size, index).long()  # padding falls off the end
    return found.scatter_(-1, place, value=True)[..., :size]
