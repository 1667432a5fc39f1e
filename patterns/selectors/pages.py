"""Pages of the KV cache for the last query: decoding."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskwright.dsl.errors import ShapeError
from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table
from maskwright.patterns.common import head_index
from maskwright.patterns.selectors.choose import ascending
from maskwright.patterns.selectors.choose import check_inputs
from maskwright.patterns.selectors.choose import grouped
from maskwright.patterns.selectors.choose import split
from maskwright.patterns.selectors.choose import top
from maskwright.patterns.selectors.slash import last_weights


def page_mask(page: int, *, head_axis: Literal["query", "kv", "one"] = "query") -> Expr:
    """The mask of the lists below: ``k <= q and k // page in pages[b, head]``.

    It takes the general path; ``columns_of_pages`` gives the same pairs as a list of columns,
    which is gathered. ``head_axis``: "query" for ``quest_pages``, "one" for ``delta_pages``.

    >>> from maskwright.patterns.selectors import page_mask
    >>> str(page_mask(16))
    '(k <= q) & (k // 16).isin(table("pages", ndim=3)[b, h])'
    """
    head = head_index("page_mask", head_axis, ("query", "kv", "one"))
    return (k <= q) & (k // page).isin(table("pages", ndim=3)[b, head])


def columns_of_pages(pages: Tensor, page: int, kv_len: int, heads: int) -> dict[str, Tensor]:
    """The keys of pages as columns, for ``vertical_slash()`` without diagonals.

    Args:
        pages: int32 (B, heads or 1, n), padded with -1.
        page: keys of a page.
        kv_len: keys beyond it are padding.
        heads: query heads of the call.

    Returns:
        ``v_idx`` int32 (B, heads, n * page) and ``s_idx`` (B, heads, 1), all padding.

    Raises:
        ShapeError: for another number of heads.
    """
    if pages.shape[1] not in (1, heads):
        raise ShapeError("pages are of all heads or of each", expression=str(tuple(pages.shape)))
    columns = pages[..., None] * page + torch.arange(page, device=pages.device)
    unknown = (pages < 0)[..., None] | (columns >= kv_len)
    columns = columns.masked_fill(unknown, -1).flatten(2).int()
    columns = columns.expand(-1, heads, -1).contiguous()
    return {"v_idx": columns, "s_idx": torch.full_like(columns[..., :1], -1)}


def quest_pages(
    query: Tensor, key: Tensor, count: int, *, page: int = 16, parts: int = 1, recent: int = 1
) -> dict[str, Tensor]:
    """For each query head the pages that could hold the largest logit of the last query.

    A page's score is the most that ``q . k`` can be with every coordinate of ``k`` between the
    least and the largest of its keys:

        score = max over parts of  sum over d of max(q[d] * least[d], q[d] * largest[d])

    Args:
        query, key: (B, Hq, Sq, D) and (B, Hkv, Sk, D); the last query counts.
        count: pages to keep, forced ones included.
        page: keys of a page; the last one may be shorter.
        parts: pieces of a page with bounds of their own; LServe has 4 of 16 keys.
        recent: last pages that are always among them.

    Returns:
        ``pages`` int32 (B, Hq, count), ascending, padded with -1, for ``page_mask(page)``.

    Source: Quest; LServe's dynamic pages. No first page is forced.

    Raises:
        ShapeError: if parts do not divide a page.
    """
    check_inputs(query, key)
    if parts < 1 or page % parts:
        raise ShapeError("parts divide a page", expression=f"page={page}, parts={parts}")
    last = grouped(query[:, :, -1:], key.shape[1]).float()
    low, high = (_edges(key, page // parts, sign)[:, :, None] for sign in (-1, 1))
    # With q >= 0 the largest coordinate decides, with q < 0 the least.
    bound = last.clamp(min=0) @ high.transpose(-1, -2) + last.clamp(max=0) @ low.transpose(-1, -2)
    bound = bound.flatten(1, 3)
    missing = -bound.shape[-1] % parts
    bound = torch.nn.functional.pad(bound, (0, missing), value=-torch.inf)
    return {"pages": _chosen(split(bound, 2, parts).amax(3), count, recent)}


def delta_pages(
    query: Tensor,
    key: Tensor,
    count: int = 64,
    *,
    page: int = 16,
    recent: int = 8,
    scale: float | None = None,
) -> dict[str, Tensor]:
    """The pages that weigh most for the last query: one set for all heads.

    ``score = sum over the keys of a page of max over heads of exp(logit - lse)``.

    Args:
        query, key: (B, Hq, Sq, D) and (B, Hkv, Sk, D); the last query counts.
        count: pages to keep, forced ones included.
        page: keys of a page.
        recent: last pages that are always among them.
        scale: of the logits; D ** -0.5 by default.

    Returns:
        ``pages`` int32 (B, 1, count), ascending, padded with -1, for
        ``page_mask(page, head_axis="one")``.

    Source: DELTA's selection layers; other layers use their lists. Of equal scores the earlier
    page is taken, where the original adds a small bias by position.
    """
    check_inputs(query, key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = last_weights(query, key, 1, scale)[:, :, 0].amax(1, keepdim=True)
    padded = torch.nn.functional.pad(weights, (0, -key.shape[2] % page))
    return {"pages": _chosen(split(padded, 2, page).sum(3), count, recent)}


def _edges(key: Tensor, size: int, sign: int) -> Tensor:
    """The largest (sign 1) or least (-1) coordinates of ``size`` keys, float32 (B, Hkv, n, D)."""
    padding = (0, 0, 0, -key.shape[2] % size)
    padded = torch.nn.functional.pad(key.float() * sign, padding, value=-torch.inf)
    return split(padded, 2, size).amax(3) * sign


def _chosen(scores: Tensor, count: int, recent: int) -> Tensor:
    scores[..., max(0, scores.shape[-1] - recent) :] = torch.inf
    return ascending(top(scores, count))
