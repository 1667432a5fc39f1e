"""What selectors share: checks of the inputs, and the indices of the largest scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.dsl.errors import ShapeError

Budget: TypeAlias = int | Sequence[int]
"""How many entries to keep: one number, or one for each head."""


def check_inputs(query: Tensor, key: Tensor) -> None:
    """Query (B, Hq, Sq, D) and key (B, Hkv, Sk, D), Hq a multiple of Hkv, on one device.

    Raises:
        ShapeError: if they do not fit.
    """
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
    if query.dim() != 4 or key.dim() != 4:
        raise ShapeError(
            "a selector takes 4-D tensors (batch, heads, length, dim)", expression=shapes
        )
    same = query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3]
    if not same or query.shape[1] % key.shape[1] or query.device != key.device:
        raise ShapeError(
            "batch, head dimension and device of query and key differ, or the heads do not divide",
            expression=shapes,
        )


def grouped(query: Tensor, kv_heads: int) -> Tensor:
    """Query heads beside the others of their KV head: (B, Hkv, group, Sq, D)."""
    batch, heads, length, dim = query.shape
    return query.reshape(batch, kv_heads, heads // kv_heads, length, dim)


def split(x: Tensor, dim: int, size: int) -> Tensor:
    """Dimension ``dim`` as two: pieces, and the ``size`` entries of each."""
    return x.reshape(*x.shape[:dim], -1, size, *x.shape[dim + 1 :])


def widest(budget: Budget) -> int:
    """The most entries that any head keeps."""
    return budget if isinstance(budget, int) else max(budget, default=0)


def top(scores: Tensor, budget: Budget, *, head_dim: int = 1) -> Tensor:
    """Indices of the largest scores of the last dimension, int32, padded with -1.

    Equal scores go to the lower index, on every device. A score of -inf is never taken. Nothing is
    read back from the device. The order of the result is not defined.

    Args:
        scores: any shape; float32.
        budget: how many to keep; with one number a head, the result is as wide as the largest.
        head_dim: the dimension of ``scores`` that counts the heads.

    Raises:
        ShapeError: for budgets below 0 or of another number of heads.
    """
    check_budget(budget, scores.shape[head_dim])
    size, width = scores.shape[-1], widest(budget)
    kept, each = min(width, size), not isinstance(budget, int)
    # One key holds score and index, so no two are equal and the choice is the same everywhere.
    behind = size - 1 - torch.arange(size, device=scores.device)
    found = (_ordered(scores) * 2**32 + behind).topk(kept, sorted=each).values
    index = size - 1 - found % 2**32
    index = index.masked_fill(found // 2**32 == _NOTHING, -1)
    if not isinstance(budget, int):
        limits = _limits(tuple(budget), scores.device)
        limits = limits.reshape([-1 if x == head_dim else 1 for x in range(scores.dim())])
        index = index.masked_fill(torch.arange(kept, device=scores.device) >= limits, -1)
    return torch.nn.functional.pad(index, (0, width - kept), value=-1).int()


def ascending(index: Tensor) -> Tensor:
    """The entries in ascending order, the padding behind them."""
    last = torch.iinfo(index.dtype).max
    ordered = index.masked_fill(index < 0, last).sort(-1).values
    return ordered.masked_fill(ordered == last, -1)


def check_budget(budget: Budget, heads: int) -> None:
    """One number of at least 0, or one a head.

    Raises:
        ShapeError: otherwise.
    """
    given = [budget] if isinstance(budget, int) else list(budget)
    if any(x < 0 for x in given) or (not isinstance(budget, int) and len(given) != heads):
        raise ShapeError(
            f"a budget is a number of at least 0, or one for each of the {heads} heads",
            expression=str(budget),
        )


def _ordered(scores: Tensor) -> Tensor:
    """Int64 numbers in the order of float32 scores."""
    bits = (scores.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()


_NOTHING = int(_ordered(torch.tensor(-torch.inf)))


@lru_cache(maxsize=256)
def _limits(budget: tuple[int, ...], device: torch.device) -> Tensor:
    """On the device once: a later call copies nothing, so it can be captured in a CUDA graph."""
    return torch.tensor(budget, device=device)
