"""A transformer block small enough to compile in seconds, and batches whose sizes and values change."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import torch
from torch import Tensor
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import maskwright as mw
from benchmarks.cases import document_ids
from maskwright import b
from maskwright import k
from maskwright import q

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Any, Tensor], Tensor]

_window = mw.param("window", min=1)
_doc_id = mw.table("doc_id", ndim=2, sorted=True)
MASK = (k <= q) & (q - k < _window) & (_doc_id[b, q] == _doc_id[b, k])

WINDOW, DOCUMENT = 64, 48  # where they are not changed: keys of the window, tokens a document


@dataclass(frozen=True)
class Sizes:
    """Of the block and its batches; lengths lie between ``shortest`` and ``longest``."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    shortest: int = 129
    longest: int = 512
    dtype: torch.dtype = torch.float32

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim


class Batch(NamedTuple):
    """Inputs of a step: tokens (B, S, width), the window, document ids (B, S)."""

    tokens: Tensor
    window: int
    doc_id: Tensor


def attend_maskwright(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Any,
    doc_id: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """The mask with its runtime values."""
    out: Any = mw.attention(query, key, value, MASK, window=window, doc_id=doc_id, backend=backend)
    found: Tensor = out
    return found


def attend_dense(query: Tensor, key: Tensor, value: Tensor, window: Any, doc_id: Tensor) -> Tensor:
    """The same with the mask written out: what torch alone does with these changes."""
    position = torch.arange(query.shape[2], device=query.device)
    distance = position[:, None] - position[None]
    keep = (distance >= 0) & (distance < window) & (doc_id[:, :, None] == doc_id[:, None])
    return scaled_dot_product_attention(query, key, value, attn_mask=keep[:, None], enable_gqa=True)


def attentions(backend: str) -> dict[str, Attend]:
    """The contestants by name."""
    return {"maskwright": partial(attend_maskwright, backend=backend), "dense": attend_dense}


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside a residual path."""

    def __init__(self, sizes: Sizes, attend: Attend) -> None:
        super().__init__()
        self.sizes, self.attend = sizes, attend
        width = sizes.width
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs = nn.Linear(width, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim)
        self.output = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor, window: Any, doc_id: Tensor) -> Tensor:
        """(B, S, width) to (B, S, width)."""
        tokens = tokens + self.attention(self.norm(tokens), window, doc_id)
        found: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return found

    def attention(self, x: Tensor, window: Any, doc_id: Tensor) -> Tensor:
        """Heads are views of one product, as in most models."""
        s = self.sizes
        heads = self.inputs(x).unflatten(-1, (-1, s.head_dim)).transpose(1, 2)
        query, key, value = heads.split([s.heads, s.kv_heads, s.kv_heads], 1)
        out = self.attend(query, key, value, window, doc_id)
        found: Tensor = self.output(out.transpose(1, 2).flatten(2))
        return found


def batches(sizes: Sizes, changes: frozenset[str], device: str, seed: int = 0) -> Iterator[Batch]:
    """Batches without end, of which only ``changes`` change: window, documents, lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    while True:
        length = draw(sizes.shortest, sizes.longest + 1) if "lengths" in changes else sizes.longest
        window = draw(2, sizes.longest) if "window" in changes else WINDOW
        seeds = [draw(0, 2**31 - 1) if "documents" in changes else i for i in range(sizes.batch)]
        ids = torch.stack([document_ids(length, DOCUMENT, seed) for seed in seeds])
        tokens = torch.randn(sizes.batch, length, sizes.width, generator=generator)
        yield Batch(tokens.to(device, sizes.dtype), window, ids.to(device))
