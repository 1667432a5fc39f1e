"""Columns and diagonals from the attention of the last queries."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.dsl.errors import ShapeError
from maskwright.patterns.selectors.choose import Budget
from maskwright.patterns.selectors.choose import check_inputs
from maskwright.patterns.selectors.choose import grouped
from maskwright.patterns.selectors.choose import top


def vertical_slash(
    query: Tensor,
    key: Tensor,
    columns: Budget = 1000,
    diagonals: Budget = 6096,
    *,
    first: int = 30,
    recent: int = 100,
    last: int = 64,
    scale: float | None = None,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """The columns and diagonals that weigh most for the last queries; for ``vertical_slash()``.

    With ``a = Sk - Sq + row`` and ``p`` the softmax of ``scale * q . k`` over ``k <= a``, rows
    restricted to the last ``last``:

        column k:    sum over rows of p[row, k],         +inf for k < first
        diagonal d:  sum over rows of p[row, a - d],     +inf for d < recent

    The largest are kept. The forced ones count towards the budget.

    Args:
        query, key: (B, Hq, Sq, D) and (B, Hkv, Sk, D), any float dtype; sums are in float32.
            Each query head has lists of its own, also within a group.
        columns, diagonals: entries to keep, of all heads or of each.
        first, recent: first columns and last diagonals that are always among them.
        last: how many of the last queries are looked at, at most 64 on a GPU.
        scale: of the logits; D ** -0.5 by default.
        backend: ``auto``, ``torch``, or ``triton`` (CUDA tensors; the default there).

    Returns:
        ``v_idx`` int32 (B, Hq, columns) and ``s_idx`` int32 (B, Hq, diagonals), in any order, padded
        with -1. The same inputs give the same lists: sums are in a fixed order, and of equal ones
        the earlier column and the nearer diagonal are taken.

    Source: MInference's vertical-slash heads, and Qwen2.5-1M. Positions follow ``Sk - Sq``, which
    MInference takes to be 0.

    Raises:
        ShapeError: for tensors, budgets or a backend that do not fit.
    """
    check_inputs(query, key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    by_column, by_diagonal = _sums(backend, query, key, last, scale)
    by_column[..., :first] = torch.inf
    by_diagonal[..., :recent] = torch.inf
    return {"v_idx": top(by_column, columns), "s_idx": top(by_diagonal, diagonals)}


def torch_sums(query: Tensor, key: Tensor, last: int, scale: float) -> tuple[Tensor, Tensor]:
    """Sums of the last queries' softmax by column and by diagonal, float32 (B, Hq, Sk) each."""
    weights = last_weights(query, key, last, scale)
    rows, kv_len = weights.shape[-2:]
    position = torch.arange(kv_len - rows, kv_len, device=key.device)[:, None]
    column = position - torch.arange(kv_len, device=key.device)  # of a row, by distance
    sheared = weights.gather(-1, column.clamp(min=0).expand_as(weights))
    return weights.sum(2), sheared.masked_fill_(column < 0, 0.0).sum(2)


def last_weights(query: Tensor, key: Tensor, last: int, scale: float) -> Tensor:
    """Causal softmax of the last queries, float32 (B, Hq, rows, Sk); rows without a key are 0."""
    rows, kv_len = min(last, query.shape[2]), key.shape[2]
    picked = grouped(query[:, :, query.shape[2] - rows :], key.shape[1]).float()
    logits = picked @ key.float()[:, :, None].transpose(-1, -2) * scale
    position = torch.arange(kv_len - rows, kv_len, device=key.device)
    later = torch.arange(kv_len, device=key.device) > position[:, None]
    weights = logits.masked_fill_(later, -torch.inf).softmax(-1).nan_to_num_(0.0)
    return weights.flatten(1, 2)


def _sums(
    backend: str, query: Tensor, key: Tensor, last: int, scale: float
) -> tuple[Tensor, Tensor]:
    if backend not in ("auto", "torch", "triton"):
        raise ShapeError(f"unknown backend {backend!r}", fix="auto, torch or triton")
    if backend == "torch" or (backend == "auto" and not query.is_cuda):
        return torch_sums(query, key, last, scale)
    if not query.is_cuda:
        raise ShapeError("the kernels need CUDA tensors", fix='backend="torch"')
    from maskwright.patterns.selectors.slash_kernel import triton_sums

    with torch.cuda.device(query.device):
        return triton_sums(query, key, last, scale)
